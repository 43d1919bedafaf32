"""Which names exist: the versions of every adapter and the server's default, in SQLite.

A row is there if and only if the client was, or may have been, told so. Resolving a name is a point look-up in the
file; nothing here grows with adapters that nobody asks for. Knows no files of adapters and no requests.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .errors import AdapterNotFound, StoreFull
from .facts import AdapterFacts
from .names import Reference, VersionRef, parse_reference
from .registry_file import COLUMNS, connect, disposable_in, migrate, named_errors

_FIND_DEFAULT = """
SELECT v.name, v.version, v.digest, v.created, v.facts FROM default_adapter d
JOIN versions v ON v.name = d.name AND v.version = ifnull(d.version, v.version)
ORDER BY v.version DESC LIMIT 1
"""
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


class Journal(Protocol):
    """Is told of every change, one at a time: `VersionRecords`."""

    def added(self, record: AdapterRecord) -> None:
        """The row is there."""

    def removing(self, refs: Sequence[VersionRef], last: Mapping[str, int]) -> None:
        """The rows go next. last: the newest version that each of these names ever had."""

    def default_set(self, default: Reference | None) -> None: ...


class AdapterRegistry:
    """Safe to use from any thread. A method that changes something returns when the change is on the disk.

    One connection writes and another reads, so that a look-up on the event loop never waits for a write's fsync.
    Other processes read the same file, and see a change as soon as it is made: nothing is remembered here.
    journal: is told of changes while no other is made; None for who only reads.
    """

    def __init__(self, path: Path, journal: Journal | None = None) -> None:
        """Raises StateUnusable."""
        self._journal = journal
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        with named_errors():
            self._writer = connect(path)
            try:
                with self._transaction() as db:
                    migrate(db)
                self._reader = connect(path)
            except BaseException:
                self._writer.close()
                raise

    def close(self) -> None:
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    def add(self, name: str, digest: str, facts: AdapterFacts) -> AdapterRecord:
        """Make `digest` the newest version of `name`. Versions count up from 1 and are never used twice."""
        created = time.time()
        with self._writing:
            record = self._insert(name, digest, created, facts)
            if self._journal is not None:
                self._journal.added(record)
        return record

    def _insert(self, name: str, digest: str, created: float, facts: AdapterFacts) -> AdapterRecord:
        with self._transaction() as db:
            (version,) = db.execute(
                "INSERT INTO names VALUES (?, 1) "
                "ON CONFLICT (name) DO UPDATE SET last_version = last_version + 1 RETURNING last_version",
                (name,),
            ).fetchone()
            row = (name, version, digest, created, facts.to_json())
            db.execute(f"INSERT INTO versions ({COLUMNS}) VALUES (?, ?, ?, ?, ?)", row)
            db.execute("DELETE FROM disposable WHERE digest = ?", (digest,))
        return _record(row)

    def delete(self, name: str, version: int | None = None) -> list[VersionRef]:
        """Remove all versions of a name, or one; returns them. Raises AdapterNotFound.

        Where the server's default is left without a version, in the same transaction there is no default any more;
        and digests that are left without one are disposable.
        """
        with self._writing:
            removed, default_gone = self._remove(Reference(name, version))
            if default_gone and self._journal is not None:
                self._journal.default_set(None)
        return removed

    def _remove(self, reference: Reference) -> tuple[list[VersionRef], bool]:
        """What was removed, and whether the default went with it."""
        with self._transaction() as db:
            removed = [
                VersionRef(*row)
                for row in db.execute(
                    "SELECT name, version, digest FROM versions WHERE name = ?1 AND version = ifnull(?2, version)",
                    reference,
                )
            ]
            if not removed:
                raise _not_found(reference)
            if self._journal is not None:
                last = db.execute("SELECT name, last_version FROM names WHERE name = ?", (reference.name,)).fetchall()
                self._journal.removing(removed, dict(last))
            db.execute("DELETE FROM versions WHERE name = ?1 AND version = ifnull(?2, version)", reference)
            db.executemany(
                "INSERT OR IGNORE INTO disposable SELECT ?1 WHERE NOT EXISTS "
                "(SELECT 1 FROM versions WHERE digest = ?1)",
                [(ref.digest,) for ref in removed],
            )
            default = read_default(db)
            default_gone = default is not None and find_row(db, default) is None
            if default_gone:
                put_default(db, None)
        return removed, default_gone

    def find(self, name: str, version: int | None = None) -> AdapterRecord | None:
        """The newest version of a name, or the given one."""
        with self._reading:
            row = find_row(self._reader, Reference(name, version))
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
        return self._rows(f"SELECT {COLUMNS} FROM versions WHERE name = ? ORDER BY version", (name,))

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
            f"SELECT {COLUMNS} FROM versions WHERE (name, version) > (?, ?) ORDER BY name, version LIMIT 500",
            (name, version),
        ):
            yield from (record.ref for record in page)
            name, version, _ = page[-1].ref

    def get_default(self) -> Reference | None:
        """The server's default as it was set; None is the bare base."""
        with self._reading:
            return read_default(self._reader)

    def find_default(self) -> AdapterRecord | None:
        """The version that answers for the default now, in one look-up: no switch or deletion comes in between."""
        with self._reading:
            row = self._reader.execute(_FIND_DEFAULT).fetchone()
        return None if row is None else _record(row)

    def set_default(self, default: str | None) -> None:
        """`name` follows its newest version, `name@2` does not; None is the bare base. Raises AdapterNotFound."""
        with self._writing:
            with self._transaction() as db:
                reference = None if default is None else _existing(db, default)
                put_default(db, reference)
            if self._journal is not None:
                self._journal.default_set(reference)

    # Files that may go

    def announce(self, digest: str) -> None:
        """Before files are stored: they may be deleted again, unless `add` gives them a version."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO disposable VALUES (?)", (digest,))

    def forget(self, digest: str) -> None:
        """The files are gone."""
        with self.transaction() as db:
            db.execute("DELETE FROM disposable WHERE digest = ?", (digest,))

    def disposable(self) -> set[str]:
        """Digests of uploads and deletions that have not ended, and that no version has."""
        with self._reading:
            return disposable_in(self._reader)

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
            default = read_default(self._reader)
            if default is not None and find_row(self._reader, default) is None:
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
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """For who mends the tables: all of the block or nothing, and no other change meanwhile. Raises StoreFull."""
        with self._writing, self._transaction() as db:
            yield db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing, for who is `_writing`. Raises StoreFull."""
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


def find_row(db: sqlite3.Connection, reference: Reference) -> _Row | None:
    row: _Row | None = db.execute(
        f"SELECT {COLUMNS} FROM versions WHERE name = ?1 AND version = ifnull(?2, version) "
        "ORDER BY version DESC LIMIT 1",
        reference,
    ).fetchone()
    return row


def read_default(db: sqlite3.Connection) -> Reference | None:
    row = db.execute("SELECT name, version FROM default_adapter").fetchone()
    return None if row is None else Reference(*row)


def _existing(db: sqlite3.Connection, default: str) -> Reference:
    """Raises AdapterNotFound."""
    reference = parse_reference(default)
    if reference is None or find_row(db, reference) is None:
        raise AdapterNotFound(f"there is no adapter {default[:140]!r}", param="adapter")
    return reference


def put_default(db: sqlite3.Connection, reference: Reference | None) -> None:
    db.execute("DELETE FROM default_adapter")
    if reference is not None:
        db.execute("INSERT INTO default_adapter VALUES (1, ?, ?)", reference)


def _record(row: _Row) -> AdapterRecord:
    name, version, digest, created, facts = row
    return AdapterRecord(VersionRef(name, version, digest), created, AdapterFacts.from_json(facts))


def _not_found(reference: Reference) -> AdapterNotFound:
    name, version = reference
    return AdapterNotFound(f"there is no adapter {name if version is None else f'{name}@{version}'!r}")
