"""Which names exist: the versions of every adapter and the server's default, in SQLite.

A row is there if and only if the client was, or may have been, told so. Resolving a name is a point look-up in the
file; nothing here grows with adapters that nobody asks for. Knows no files and no requests.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import AdapterNotFound, StoreFull
from .facts import AdapterFacts
from .names import Reference, VersionRef, parse_reference

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE names (name TEXT PRIMARY KEY, last_version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE versions (
    name TEXT NOT NULL REFERENCES names, version INTEGER NOT NULL, digest TEXT NOT NULL, created REAL NOT NULL,
    facts TEXT NOT NULL, PRIMARY KEY (name, version)
) WITHOUT ROWID;
CREATE INDEX versions_by_digest ON versions (digest);
CREATE TABLE default_adapter (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL, version INTEGER);
"""
_FIND_DEFAULT = """
SELECT v.name, v.version, v.digest, v.created, v.facts FROM default_adapter d
JOIN versions v ON v.name = d.name AND v.version = ifnull(d.version, v.version)
ORDER BY v.version DESC LIMIT 1
"""
_COLUMNS = "name, version, digest, created, facts"
_Row = tuple[str, int, str, float, str]


@dataclass(frozen=True)
class AdapterRecord:
    """One version. created: seconds since 1970."""

    ref: VersionRef
    created: float
    facts: AdapterFacts

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def version(self) -> int:
        return self.ref.version

    @property
    def digest(self) -> str:
        return self.ref.digest


class AdapterRegistry:
    """Safe to use from any thread. A method that changes something returns when the change is on the disk.

    One connection writes and another reads, so that a look-up on the event loop never waits for a write's fsync.
    Other processes read the same file, and see a change as soon as it is made: nothing is remembered here.
    """

    def __init__(self, path: Path) -> None:
        self._writer = _connect(path)
        self._reader = _connect(path)
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        with self._transaction() as db:
            _migrate(db, path)

    def close(self) -> None:
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def add(self, name: str, digest: str, facts: AdapterFacts) -> AdapterRecord:
        """Make `digest` the newest version of `name`. Versions count up from 1 and are never used twice."""
        created = time.time()
        with self._transaction() as db:
            (version,) = db.execute(
                "INSERT INTO names VALUES (?, 1) "
                "ON CONFLICT (name) DO UPDATE SET last_version = last_version + 1 RETURNING last_version",
                (name,),
            ).fetchone()
            row = (name, version, digest, created, facts.to_json())
            db.execute(f"INSERT INTO versions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", row)
        return _record(row)

    def delete(self, name: str, version: int | None = None) -> list[VersionRef]:
        """Remove all versions of a name, or one; returns them. Raises AdapterNotFound.

        Where the server's default is left without a version, in the same transaction there is no default any more.
        """
        with self._transaction() as db:
            removed = [
                VersionRef(*row)
                for row in db.execute(
                    "SELECT name, version, digest FROM versions WHERE name = ?1 AND version = ifnull(?2, version)",
                    (name, version),
                )
            ]
            if not removed:
                raise _not_found(Reference(name, version))
            db.execute("DELETE FROM versions WHERE name = ?1 AND version = ifnull(?2, version)", (name, version))
            default = _default(db)
            if default is not None and default.name == name and _find(db, default) is None:
                db.execute("DELETE FROM default_adapter")
        return removed

    def find(self, name: str, version: int | None = None) -> AdapterRecord | None:
        """The newest version of a name, or the given one."""
        with self._reading:
            row = _find(self._reader, Reference(name, version))
        return None if row is None else _record(row)

    def get(self, name: str, version: int | None = None) -> AdapterRecord:
        """The same. Raises AdapterNotFound."""
        record = self.find(name, version)
        if record is None:
            raise _not_found(Reference(name, version))
        return record

    def page(self, *, after: str = "", limit: int = 1000) -> list[AdapterRecord]:
        """The newest version of each name, by name, beginning behind the name `after`."""
        return self._rows(
            "SELECT v.name, max(v.version), v.digest, v.created, v.facts FROM versions v "
            "WHERE v.name > ? GROUP BY v.name ORDER BY v.name LIMIT ?",
            (after, limit),
        )

    def versions(self, name: str) -> list[AdapterRecord]:
        """All versions of a name, oldest first; empty if there is none."""
        return self._rows(f"SELECT {_COLUMNS} FROM versions WHERE name = ? ORDER BY version", (name,))

    def count(self) -> int:
        """Number of names."""
        return int(self._value("SELECT count(DISTINCT name) FROM versions", ()))

    def in_use(self, digest: str) -> bool:
        """Whether any version has this digest."""
        return bool(self._value("SELECT EXISTS (SELECT 1 FROM versions WHERE digest = ?)", (digest,)))

    def refs(self) -> Iterator[VersionRef]:
        """Every version of every adapter, read in pages."""
        name, version = "", 0
        while page := self._rows(
            f"SELECT {_COLUMNS} FROM versions WHERE (name, version) > (?, ?) ORDER BY name, version LIMIT 500",
            (name, version),
        ):
            yield from (record.ref for record in page)
            name, version, _ = page[-1].ref

    def get_default(self) -> Reference | None:
        """The server's default as it was set; None is the bare base."""
        with self._reading:
            return _default(self._reader)

    def find_default(self) -> AdapterRecord | None:
        """The version that answers for the default now, in one look-up: no switch or deletion comes in between."""
        with self._reading:
            row = self._reader.execute(_FIND_DEFAULT).fetchone()
        return None if row is None else _record(row)

    def set_default(self, default: str | None) -> None:
        """`name` follows its newest version, `name@2` does not; None is the bare base. Raises AdapterNotFound."""
        with self._transaction() as db:
            db.execute("DELETE FROM default_adapter")
            if default is None:
                return
            reference = parse_reference(default)
            if reference is None or _find(db, reference) is None:
                raise AdapterNotFound(f"there is no adapter {default[:140]!r}", param="adapter")
            db.execute("INSERT INTO default_adapter VALUES (1, ?, ?)", reference)

    def check_integrity(self) -> None:
        """Raise RuntimeError if the file is damaged or its tables contradict each other."""
        with self._reading:
            problems = [row[0] for row in self._reader.execute("PRAGMA integrity_check") if row[0] != "ok"]
            problems += [
                f"{name}@{version} is newer than the last version given"
                for name, version in self._reader.execute(
                    "SELECT name, version FROM versions LEFT JOIN names USING (name) "
                    "WHERE last_version IS NULL OR version > last_version"
                )
            ]
            default = _default(self._reader)
            if default is not None and _find(self._reader, default) is None:
                problems.append(f"the default {default.name} does not exist")
        if problems:
            raise RuntimeError(f"the adapter registry is damaged: {'; '.join(problems[:5])}")

    def _rows(self, query: str, parameters: tuple[object, ...]) -> list[AdapterRecord]:
        with self._reading:
            return [_record(row) for row in self._reader.execute(query, parameters)]

    def _value(self, query: str, parameters: tuple[object, ...]) -> int:
        with self._reading:
            row: tuple[int] = self._reader.execute(query, parameters).fetchone()
        return row[0]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing. Raises StoreFull."""
        with self._writing:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise StoreFull("the server's disk has no room for this adapter") from None
                raise
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    return db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in (0, SCHEMA_VERSION):
        raise RuntimeError(f"{path.name} was written by another release of peftserve (schema {version})")
    if version == 0:
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _find(db: sqlite3.Connection, reference: Reference) -> _Row | None:
    row: _Row | None = db.execute(
        f"SELECT {_COLUMNS} FROM versions WHERE name = ?1 AND version = ifnull(?2, version) "
        "ORDER BY version DESC LIMIT 1",
        reference,
    ).fetchone()
    return row


def _default(db: sqlite3.Connection) -> Reference | None:
    row = db.execute("SELECT name, version FROM default_adapter").fetchone()
    return None if row is None else Reference(*row)


def _record(row: _Row) -> AdapterRecord:
    name, version, digest, created, facts = row
    return AdapterRecord(VersionRef(name, version, digest), created, AdapterFacts.from_json(facts))


def _not_found(reference: Reference) -> AdapterNotFound:
    name, version = reference
    return AdapterNotFound(f"there is no adapter {name if version is None else f'{name}@{version}'!r}")
