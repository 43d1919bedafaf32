"""The settings of adapters' names in the registry: read, changed, and ended by their time.

They live as long as a version of the name, or one that can be restored. Beside the rows lie files, see `documents`.
Knows no requests and no engine.
"""

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from .documents import Document, DocumentFiles
from .errors import AdapterConflict, AdapterError
from .names import Reference
from .ownership import SERVER, Actor
from .registry import AdapterRegistry
from .registry_reader import RegistryReader, find_row, not_found
from .settings import Settings, read_settings

FOLDER = "settings"
_ROWS = "SELECT name, version, created, body, owner FROM documents WHERE kind = 'settings'"
# When a name is to go; NULL for never, and where it has no version.
_ENDS = (
    "json_extract(body, '$.ttl') + max(created, (SELECT max(created) FROM versions v WHERE v.name = documents.name))"
)
_PINNED = """
SELECT v.digest FROM documents d JOIN versions v ON v.name = d.name
WHERE d.kind = 'settings' AND json_extract(d.body, '$.pinned') AND (
    v.version = (SELECT max(version) FROM versions WHERE name = v.name)
    OR EXISTS (SELECT 1 FROM route_targets t WHERE t.name = v.name AND t.version = v.version)
    OR EXISTS (SELECT 1 FROM default_adapter a WHERE a.name = v.name AND a.version = v.version)
) ORDER BY d.created, v.name, v.version DESC
"""


class Stored(NamedTuple):
    """The settings of one name. ends: when it is deleted, in seconds since 1970; None for never."""

    settings: Settings
    ends: float | None = None


NOTHING_SET = Stored(Settings())


class SettingsReader:
    """Look-ups of settings, on whatever connection they are to take their time."""

    def __init__(self, reader: RegistryReader) -> None:
        self._reader = reader

    def of(self, names: Iterable[str]) -> dict[str, Stored]:
        """Return name to settings, for the names that have some."""
        query = (
            f"SELECT name, body, {_ENDS} FROM documents "
            "WHERE kind = 'settings' AND name IN (SELECT value FROM json_each(?))"
        )
        rows = self._reader.read(query, (msgspec.json.encode(list(names)).decode(),))
        return {name: Stored(read_settings(body), ends) for name, body, ends in rows}

    def pinned(self) -> list[str]:
        """Return the digests that are to stay on the device: the newest version of each pinned name, and those that a
        route or the default names by their number. The names that were pinned first come first.
        """
        return list(dict.fromkeys(digest for (digest,) in self._reader.read(_PINNED)))

    def expired(self, now: float) -> list[str]:
        """Return the names whose time is over."""
        query = f"SELECT name FROM documents WHERE kind = 'settings' AND {_ENDS} <= ?"
        return [name for (name,) in self._reader.read(query, (now,))]

    def next_end(self, now: float) -> float | None:
        """Return when the next name's time is over that is not over yet; None if there is none."""
        query = f"SELECT min(ends) FROM (SELECT {_ENDS} AS ends FROM documents WHERE kind = 'settings') WHERE ends > ?"
        end: float | None = self._reader.read(query, (now,))[0][0]
        return end


class Change:
    """Changes of settings inside one transaction. files: what has to be written beside the registry afterwards."""

    def __init__(self) -> None:
        self.files: list[tuple[str, Document | None, Document | None]] = []  # name, before, after

    def patch(self, db: sqlite3.Connection, name: str, patch: Mapping[str, Any], *, is_new: bool = False) -> None:
        """Apply a merge patch. is_new: to nothing, as the name is another's than it was. Raises InvalidAdapter."""
        before = _find(db, name)
        settings = Settings() if is_new or before is None else read_settings(before.body)
        self._put(db, name, before, settings.patched(patch))

    def uploaded(self, db: sqlite3.Connection, name: str, patch: Mapping[str, Any]) -> None:
        """Apply what comes with a version that has just been written. Raises InvalidAdapter."""
        (count,) = db.execute("SELECT count(*) FROM versions WHERE name = ?", (name,)).fetchone()
        if patch or count == 1:
            self.patch(db, name, patch, is_new=count == 1)

    def renew(self, db: sqlite3.Connection, name: str) -> None:
        """Let the time of a name begin again."""
        if (before := _find(db, name)) is not None:
            self._put(db, name, before, read_settings(before.body))

    def forget(self, db: sqlite3.Connection, name: str) -> None:
        """Delete the settings of a name that has no version, not even one that can be restored."""
        rows = db.execute(
            "SELECT EXISTS (SELECT 1 FROM versions WHERE name = ?1) OR EXISTS (SELECT 1 FROM deleted WHERE name = ?1)",
            (name,),
        ).fetchone()
        if not rows[0]:
            self._put(db, name, _find(db, name), Settings())

    def _put(self, db: sqlite3.Connection, name: str, before: Document | None, settings: Settings) -> None:
        after = None
        db.execute("DELETE FROM documents WHERE kind = 'settings' AND name = ?", (name,))
        if settings != Settings():
            after = Document(name, before.version + 1 if before else 1, time.time(), settings.to_json())
            db.execute("INSERT INTO documents VALUES ('settings', ?, ?, ?, ?, ?)", after)
        self.files.append((name, before, after))


class SettingsStore(SettingsReader):
    """The settings in the process that changes them. folder: of the state, for the files beside the registry."""

    def __init__(self, registry: AdapterRegistry, folder: Path) -> None:
        super().__init__(registry)
        self._registry = registry
        self._files = DocumentFiles(folder)
        self._order = threading.Lock()  # files are written in the order of the rows

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """Run a block with one transaction, and write the files of what it has changed, unless it raises."""
        with self._order:
            change = Change()
            yield change
            for name, before, after in change.files:
                if after is not None:
                    self._files.put(after, None if before is None else before.version)
                elif before is not None:
                    self._files.remove(name, before.version)

    def patch(self, name: str, patch: Mapping[str, Any], actor: Actor = SERVER) -> Stored:
        """Change settings of an existing name. Returns when they are on the disk.

        Raises AdapterNotFound, AdapterForbidden, InvalidAdapter.
        """
        with self.changing() as change, self._registry.transaction() as db:
            actor.check_change(db, Reference(name))
            if find_row(db, Reference(name)) is None:
                raise not_found(Reference(name))
            change.patch(db, name, patch)
        return self.of([name]).get(name, NOTHING_SET)

    def forget(self, name: str) -> None:
        """Delete the settings of a name that has no version, not even one that can be restored."""
        with self.changing() as change, self._registry.transaction() as db:
            change.forget(db, name)

    def check_over(self, db: sqlite3.Connection, name: str, now: float) -> None:
        """Raise AdapterConflict unless the time of a name is over, inside a transaction."""
        query = f"SELECT {_ENDS} <= ? FROM documents WHERE kind = 'settings' AND name = ?"
        row = db.execute(query, (now, name)).fetchone()
        if row is None or not row[0]:
            raise AdapterConflict(f"the time of {name!r} is not over", param="name")


def settle_settings(registry: AdapterRegistry, folder: Path, *, is_new: bool) -> list[str]:
    """Bring the rows and files of settings to agree, for the start. Returns the names whose settings were lost.

    Rows that no release has written, and those of names that are gone, are deleted. is_new: the registry has just been
    made, with the versions in it again.
    """
    with registry.transaction() as db:
        names = {name for (name,) in db.execute("SELECT name FROM versions UNION SELECT name FROM deleted")}

        def is_valid(document: Document) -> bool:
            return document.name in names and _is_valid(document.body)

        for row in map(Document._make, db.execute(_ROWS).fetchall()):
            if not is_valid(row):
                db.execute("DELETE FROM documents WHERE kind = 'settings' AND name IS ?", (row.name,))
        rows = [Document(*row) for row in db.execute(_ROWS)]
        lost = DocumentFiles(folder).settle(rows, is_valid, is_new=is_new)
        db.executemany("INSERT INTO documents VALUES ('settings', ?, ?, ?, ?, ?)", lost)
    return [document.name for document in lost]


def _find(db: sqlite3.Connection, name: str) -> Document | None:
    row = db.execute(f"{_ROWS} AND name = ?", (name,)).fetchone()
    return None if row is None else Document(*row)


def _is_valid(body: object) -> bool:
    """Return whether a row or a file holds settings that some release has written."""
    try:
        return isinstance(body, str) and bool(read_settings(body).to_json())
    except (AdapterError, ValueError):
        return False
