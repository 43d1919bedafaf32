"""Look-ups in the registry: the versions of every adapter, and the server's default.

Each is a point look-up or a page in the file; nothing here grows with adapters that nobody asks for. Knows no files of
adapters and no requests.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from .errors import AdapterConflict, AdapterNotFound
from .facts import AdapterFacts
from .names import Reference, VersionRef
from .registry_file import COLUMNS, disposable_in, restorable_in

T = TypeVar("T")
Row = tuple[str, int, str, float, str, str, str]
"""The columns `COLUMNS` of one version."""
IN_USE = "EXISTS (SELECT 1 FROM versions WHERE digest = ?1) OR EXISTS (SELECT 1 FROM deleted WHERE digest = ?1)"
"""A condition on a digest: whether a version has it, or one that can be restored."""
_NO_ORIGIN: Mapping[str, Any] = {}


@dataclass(frozen=True)
class AdapterRecord:
    """One version of an adapter.

    created: seconds since 1970. origin: where it came from, as its card shows it; empty for an upload.
    owner: the tenant that added it.
    """

    ref: VersionRef
    created: float
    facts: AdapterFacts
    origin: Mapping[str, Any] = field(default_factory=dict)
    owner: str = ""

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def version(self) -> int:
        return self.ref.version

    @property
    def digest(self) -> str:
        return self.ref.digest


class RegistryReader:
    """Look-ups on one connection, from any thread.

    Nothing is remembered between calls: a change by another process is seen as soon as it is committed.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._reader = db
        self._reading: AbstractContextManager[object] = threading.RLock()

    def close(self) -> None:
        with self._reading:
            self._reader.close()

    def find(self, name: str, version: int | None = None) -> AdapterRecord | None:
        """Return the newest version of a name, or the given one; None if there is none."""
        with self._reading:
            row = find_row(self._reader, Reference(name, version))
        return None if row is None else record_of(row)

    def get(self, name: str, version: int | None = None) -> AdapterRecord:
        """Return the newest version of a name, or the given one. Raises AdapterNotFound."""
        record = self.find(name, version)
        if record is None:
            raise not_found(Reference(name, version))
        return record

    def page(self, *, after: str = "", limit: int = 1000) -> list[AdapterRecord]:
        """Return the newest version of each name, by name, beginning behind the name `after`."""
        return self._rows(
            "SELECT name, max(version), digest, created, facts, origin, owner FROM versions "
            "WHERE name > ? GROUP BY name ORDER BY name LIMIT ?",
            (after, limit),
        )

    def versions(self, name: str) -> list[AdapterRecord]:
        """Return all versions of a name, oldest first; empty if there is none."""
        return self._rows(f"SELECT {COLUMNS} FROM versions WHERE name = ? ORDER BY version", (name,))

    def count(self) -> int:
        """Return the number of names."""
        return int(self._value("SELECT count(DISTINCT name) FROM versions", ()))

    def in_use(self, digest: str) -> bool:
        """Return whether any version has this digest, or one that can be restored."""
        return bool(self._value(f"SELECT {IN_USE}", (digest,)))

    def is_served(self, digest: str) -> bool:
        """Return whether any version has this digest, so that a request can come to it."""
        return bool(self._value("SELECT EXISTS (SELECT 1 FROM versions WHERE digest = ?)", (digest,)))

    def refs_of(self, digest: str) -> list[VersionRef]:
        """Return the versions that have this digest."""
        query = "SELECT name, version, digest FROM versions WHERE digest = ? ORDER BY name, version"
        return [VersionRef(*row) for row in self.read(query, (digest,))]

    def before_newest(self, name: str) -> AdapterRecord:
        """Return the version before the newest of a name. Raises AdapterNotFound."""
        query = f"SELECT {COLUMNS} FROM versions WHERE name = ? ORDER BY version DESC LIMIT 2"
        found = self._rows(query, (name,))
        if not found:
            raise not_found(Reference(name))
        if len(found) < 2:
            raise AdapterNotFound(f"{found[0].ref} is the only version of {name!r}", param="name")
        return found[1]

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Return the answer to a question that changes also ask, inside their transactions. Raises what it raises."""
        with self._reading:
            return question(self._reader)

    def names_of(self, digest: str) -> list[str]:
        """Return the names of which some version has this digest."""
        return list(dict.fromkeys(ref.name for ref in self.refs_of(digest)))

    def is_damaged(self, digest: str) -> bool:
        """Return whether the adapter's files are missing or not what was stored."""
        return bool(self._value("SELECT EXISTS (SELECT 1 FROM damaged WHERE digest = ?)", (digest,)))

    def refs(self) -> Iterator[VersionRef]:
        """Iterate over every version of every adapter, read in pages."""
        name, version = "", 0
        while page := self._rows(
            f"SELECT {COLUMNS} FROM versions WHERE (name, version) > (?, ?) ORDER BY name, version LIMIT 500",
            (name, version),
        ):
            yield from (record.ref for record in page)
            name, version, _ = page[-1].ref

    def get_default(self) -> Reference | None:
        """Return the server's default as it was set; None is the bare base."""
        with self._reading:
            return read_default(self._reader)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let all look-ups of this thread inside the block see one state of the file: no change comes in between."""
        with self._reading:
            if self._reader.in_transaction:  # inside another
                yield
                return
            self._reader.execute("BEGIN")
            try:
                yield
            finally:
                self._reader.execute("COMMIT")

    def disposable(self) -> set[str]:
        """Return the digests of uploads and deletions that have not ended, and that no version has."""
        with self._reading:
            return disposable_in(self._reader)

    def restorable(self) -> set[str]:
        """Return the digests of versions that were deleted and can be restored."""
        with self._reading:
            return restorable_in(self._reader)

    def read(self, query: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query, for the tables that other modules own."""
        with self._reading:
            return self._reader.execute(query, parameters).fetchall()

    def check_integrity(self) -> None:
        """Raise RuntimeError if the file is damaged or its tables contradict each other."""
        with self._reading:
            problems = [row[0] for row in self._reader.execute("PRAGMA integrity_check") if row[0] != "ok"]
            problems += [
                f"{name}@{version} is newer than the last version given"
                for name, version in self._reader.execute(
                    "SELECT name, version FROM (SELECT name, version FROM versions UNION ALL "
                    "SELECT name, version FROM documents WHERE kind = 'route') LEFT JOIN names USING (name) "
                    "WHERE last_version IS NULL OR version > last_version"
                )
            ]
            problems += [
                f"{name} is both an adapter and a route"
                for (name,) in self._reader.execute(
                    "SELECT DISTINCT name FROM versions JOIN documents USING (name) WHERE kind = 'route'"
                )
            ]
            default = read_default(self._reader)
            if default is not None and not exists(self._reader, default):
                problems.append(f"the default {default.name} does not exist")
        if problems:
            raise RuntimeError(f"the adapter registry is damaged: {'; '.join(problems[:5])}")

    def _rows(self, query: str, parameters: tuple[object, ...]) -> list[AdapterRecord]:
        with self._reading:
            return [record_of(row) for row in self._reader.execute(query, parameters)]

    def _value(self, query: str, parameters: tuple[object, ...]) -> int:
        with self._reading:
            row: tuple[int] = self._reader.execute(query, parameters).fetchone()
        return row[0]


def find_row(db: sqlite3.Connection, reference: Reference) -> Row | None:
    """Return the row of the newest version of a name, or of the given one; None if there is none."""
    row: Row | None = db.execute(
        f"SELECT {COLUMNS} FROM versions WHERE name = ?1 AND version = ifnull(?2, version) "
        "ORDER BY version DESC LIMIT 1",
        reference,
    ).fetchone()
    return row


def exists(db: sqlite3.Connection, reference: Reference) -> bool:
    """Return whether there is such a version, or a route of this name."""
    return find_row(db, reference) is not None or (reference.version is None and is_route(db, reference.name))


def is_route(db: sqlite3.Connection, name: str) -> bool:
    """Return whether a name is a route's."""
    query = "SELECT EXISTS (SELECT 1 FROM documents WHERE kind = 'route' AND name = ?)"
    return bool(db.execute(query, (name,)).fetchone()[0])


def check_no_route(db: sqlite3.Connection, name: str) -> None:
    """Raise AdapterConflict if a route has this name."""
    if is_route(db, name):
        raise AdapterConflict(f"there is a route {name!r}; choose another name", param="name")


def read_default(db: sqlite3.Connection) -> Reference | None:
    """Return the server's default as it was set; None is the bare base."""
    row = db.execute("SELECT name, version FROM default_adapter").fetchone()
    return None if row is None else Reference(*row)


def record_of(row: Row) -> AdapterRecord:
    """Return a row of the file as a record. Raises ValueError if its facts or its origin cannot be read."""
    name, version, digest, created, facts, origin, owner = row
    came = _NO_ORIGIN if origin == "{}" else msgspec.json.decode(origin, type=dict[str, Any])
    return AdapterRecord(VersionRef(name, version, digest), created, AdapterFacts.from_json(facts), came, owner)


def row_of(record: AdapterRecord) -> Row:
    """Return a record as a row of the file."""
    origin = msgspec.json.encode(record.origin).decode()
    return (*record.ref, record.created, record.facts.to_json(), origin, record.owner)


def not_found(reference: Reference) -> AdapterNotFound:
    """Return the error for a name, or a version of it, that is not there."""
    name, version = reference
    return AdapterNotFound(f"there is no adapter {name if version is None else f'{name}@{version}'!r}")
