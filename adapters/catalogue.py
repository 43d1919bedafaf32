"""Pages of adapters by name, tag, method and place, as people look for them. All of it is work of SQLite, on a
connection of its own: a look-up for a request never waits for a page.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from .registry_file import COLUMNS
from .registry_reader import AdapterRecord, RegistryReader, record_of

_BEHIND_NAMES = "\x7f"  # no name has this character or one behind it


@dataclass(frozen=True)
class Wanted:
    """What a page lists. tags: all of them. method: as PEFT calls it. prefix: of names. after: the name before.

    among: digests; None is any. not_among: other digests.
    """

    tags: Sequence[str] = ()
    method: str | None = None
    prefix: str = ""
    after: str = ""
    among: Collection[str] | None = None
    not_among: Collection[str] | None = None


def list_newest(reader: RegistryReader, wanted: Wanted, limit: int | None = None) -> tuple[list[AdapterRecord], bool]:
    """Return the newest version of each name that is wanted, by name, and whether there are more behind the last.

    limit: most of them; None is all.
    """
    most = -1 if limit is None else limit + 1
    conditions = list(_conditions(wanted))
    query = (
        f"SELECT {COLUMNS} FROM versions v WHERE {' AND '.join(text for text, _ in conditions)} "
        "AND version = (SELECT max(version) FROM versions WHERE name = v.name) ORDER BY name LIMIT ?"
    )
    rows = reader.read(query, (*(value for _, value in conditions), most))
    has_more = limit is not None and len(rows) > limit
    return [record_of(row) for row in (rows[:limit] if has_more else rows)], has_more


def _conditions(wanted: Wanted) -> Iterator[tuple[str, Any]]:
    yield "name > ?", wanted.after
    yield "name >= ?", wanted.prefix
    yield "name < ?", wanted.prefix + _BEHIND_NAMES
    for tag in wanted.tags:
        yield (
            "name IN (SELECT d.name FROM documents d, json_each(d.body, '$.tags') t "
            "WHERE d.kind = 'settings' AND t.value = ?)",
            tag,
        )
    if wanted.method is not None:
        yield "json_extract(facts, '$.method') = ?", wanted.method
    for operator, digests in (("IN", wanted.among), ("NOT IN", wanted.not_among)):
        if digests is not None:
            yield f"digest {operator} (SELECT value FROM json_each(?))", msgspec.json.encode(list(digests)).decode()
