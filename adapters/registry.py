"""The registry: which names exist, with the versions of every adapter and the server's default, in SQLite.

A row is there if and only if the client was, or may have been, told so. `registry_reader` has the look-ups, this module
the changes. Knows no files of adapters and no requests.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from .errors import AdapterNotFound, StoreFull
from .facts import AdapterFacts
from .names import Reference, VersionRef, parse_reference
from .registry_file import COLUMNS, connect, migrate, translate_errors
from .registry_reader import AdapterRecord, RegistryReader, find_row, not_found, read_default, record_of


class Journal(Protocol):
    """A listener that is told of every change, one at a time: `VersionRecords`."""

    def added(self, record: AdapterRecord) -> None:
        """Note a version whose row has been written."""

    def removing(self, refs: Sequence[VersionRef], last: Mapping[str, int]) -> None:
        """Note versions whose rows are deleted next. last: name to the newest version that it ever had."""

    def default_set(self, default: Reference | None) -> None:
        """Note the default; None is the bare base."""


class AdapterRegistry(RegistryReader):
    """The registry's tables. A method that changes something returns when the change is on the disk.

    One connection writes and another reads, so that a look-up on the event loop never waits for a write's fsync.
    journal: is told of changes while no other is made; None for a process that only reads.
    """

    def __init__(self, path: Path, journal: Journal | None = None) -> None:
        """Open the file, and make it where it is missing. Raises StateUnusable."""
        self._journal = journal
        self._writing = threading.Lock()
        with translate_errors():
            self._writer = connect(path)
            try:
                with self._transaction() as db:
                    migrate(db)
                super().__init__(connect(path))
            except BaseException:
                self._writer.close()
                raise

    def close(self) -> None:
        with self._writing:
            super().close()
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
        return record_of(row)

    def delete(self, name: str, version: int | None = None) -> list[VersionRef]:
        """Remove all versions of a name, or one; return them. Raises AdapterNotFound.

        In the same transaction, a default that is left without a version is taken away, and digests that are left
        without one are marked as disposable.
        """
        with self._writing:
            removed, default_gone = self._remove(Reference(name, version))
            if default_gone and self._journal is not None:
                self._journal.default_set(None)
        return removed

    def _remove(self, reference: Reference) -> tuple[list[VersionRef], bool]:
        """Delete the rows. Returns what was removed, and whether the default went with it."""
        with self._transaction() as db:
            removed = [
                VersionRef(*row)
                for row in db.execute(
                    "SELECT name, version, digest FROM versions WHERE name = ?1 AND version = ifnull(?2, version)",
                    reference,
                )
            ]
            if not removed:
                raise not_found(reference)
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

    def set_default(self, default: str | None) -> None:
        """Set the server's default: `name` follows its newest version, `name@2` does not, None is the bare base.

        Raises AdapterNotFound.
        """
        with self._writing:
            with self._transaction() as db:
                reference = None if default is None else _existing(db, default)
                put_default(db, reference)
            if self._journal is not None:
                self._journal.default_set(reference)

    # Marks of files that may be deleted

    def mark_disposable(self, digest: str) -> None:
        """Mark files that are about to be stored: they may be deleted again, unless `add` gives them a version."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO disposable VALUES (?)", (digest,))

    def unmark_disposable(self, digest: str) -> None:
        """Drop the mark of files that are deleted."""
        with self.transaction() as db:
            db.execute("DELETE FROM disposable WHERE digest = ?", (digest,))

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block that mends the tables, all of it or nothing, with no other change meanwhile. Raises StoreFull."""
        with self._writing, self._transaction() as db:
            yield db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block, all of it or nothing; the caller holds `_writing`. Raises StoreFull."""
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


def _existing(db: sqlite3.Connection, default: str) -> Reference:
    """Parse the name of an existing adapter or version. Raises AdapterNotFound."""
    reference = parse_reference(default)
    if reference is None or find_row(db, reference) is None:
        raise AdapterNotFound(f"there is no adapter {default[:140]!r}", param="adapter")
    return reference


def put_default(db: sqlite3.Connection, reference: Reference | None) -> None:
    """Write the server's default, inside a transaction."""
    db.execute("DELETE FROM default_adapter")
    if reference is not None:
        db.execute("INSERT INTO default_adapter VALUES (1, ?, ?)", reference)
