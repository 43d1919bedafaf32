"""The registry: which names exist, with the versions of every adapter and the server's default, in SQLite.

A row is there if and only if the client was, or may have been, told so. `registry_reader` has the look-ups, this module
the changes. Knows no files of adapters and no requests.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from .errors import AdapterConflict, AdapterNotFound, StoreFull
from .facts import AdapterFacts
from .names import Reference, VersionRef, parse_reference
from .ownership import SERVER, Actor, is_private, owner_of
from .registry_file import COLUMNS, connect, migrate, translate_errors
from .registry_reader import (
    AdapterRecord,
    RegistryReader,
    check_no_route,
    exists,
    not_found,
    read_default,
    record_of,
)
from .registry_rows import insert_version, mark_unused
from .staging import NO_ROOM, disk_failed

_DISK_FAILED = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)

Within = Callable[[sqlite3.Connection], None]
"""A part of a change: runs inside its transaction, and raises AdapterError to take it back."""


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

    def add(
        self,
        name: str,
        digest: str,
        facts: AdapterFacts,
        *,
        origin: Mapping[str, Any] | None = None,
        actor: Actor = SERVER,
        within: Within | None = None,
    ) -> AdapterRecord:
        """Make `digest` the newest version of `name`. Versions count up from 1 and are never used twice.

        actor: who adds it. within: is called inside the transaction, behind the version; what it raises takes all back.
        Raises AdapterConflict if a route has the name, or another tenant; AdapterForbidden.
        """

        def insert(db: sqlite3.Connection) -> list[AdapterRecord]:
            owner = actor.claim(db, name)
            check_no_route(db, name)
            ref = VersionRef(name, next_version(db, name), digest)
            record = AdapterRecord(ref, time.time(), facts, origin or {}, owner)
            insert_version(db, record)
            if within is not None:
                within(db)
            return [record]

        return self.insert(insert)[0]

    def insert(self, work: Callable[[sqlite3.Connection], list[AdapterRecord]]) -> list[AdapterRecord]:
        """Run a transaction that writes versions, and return those. Raises what it raises, and nothing has changed."""
        with self._writing:
            with self._transaction() as db:
                records = work(db)
            if self._journal is not None:
                for record in records:
                    self._journal.added(record)
        return records

    def delete(
        self,
        name: str,
        version: int | None = None,
        *,
        force: bool = True,
        keep_until: float | None = None,
        within: Within | None = None,
    ) -> list[VersionRef]:
        """Remove all versions of a name, or one; return them.

        In the same transaction, a default that is left without a version is taken away, and digests that are left
        without one are marked as disposable.

        force: also what a route names. keep_until: let them be restored until this time.
        within: is called inside the transaction, before; what it raises keeps them.
        Raises AdapterNotFound; AdapterConflict, without `force`, naming the routes.
        """
        with self._writing:
            told: list[AdapterRecord] = []
            try:
                removed, default_gone = self._remove(Reference(name, version), force, keep_until, within, told)
            except BaseException:  # such as a disk that takes no more: all rows stay
                self._keep(told)
                raise
            if default_gone and self._journal is not None:
                self._journal.default_set(None)
        return removed

    def _keep(self, records: list[AdapterRecord]) -> None:
        """Have the journal note again what it has been told is removed next, and what stays all the same."""
        if self._journal is not None:
            for record in records:
                self._journal.added(record)

    def _remove(
        self,
        reference: Reference,
        force: bool,
        keep_until: float | None,
        within: Within | None,
        told: list[AdapterRecord],
    ) -> tuple[list[VersionRef], bool]:
        """Delete the rows. Returns what was removed, and whether the default went with it.

        told: is filled with what the journal has been told.
        """
        with self._transaction() as db:
            query = f"SELECT {COLUMNS} FROM versions WHERE name = ?1 AND version = ifnull(?2, version)"
            records = [record_of(row) for row in db.execute(query, reference)]
            removed = [record.ref for record in records]
            if not removed:
                raise not_found(reference)
            if within is not None:
                within(db)
            if not force:
                check_unnamed(db, reference)
            if self._journal is not None:
                last = db.execute("SELECT name, last_version FROM names WHERE name = ?", (reference.name,)).fetchall()
                told += records
                self._journal.removing(removed, dict(last))
            if keep_until is not None:
                db.execute(
                    f"INSERT INTO deleted SELECT {COLUMNS}, ?3 FROM versions "
                    "WHERE name = ?1 AND version = ifnull(?2, version)",
                    (*reference, keep_until),
                )
            db.execute("DELETE FROM versions WHERE name = ?1 AND version = ifnull(?2, version)", reference)
            mark_unused(db, {ref.digest for ref in removed})
            default_gone = drop_lost_default(db)
        return removed, default_gone

    def set_default(self, default: str | None, actor: Actor = SERVER) -> None:
        """Set the server's default: `name` follows its newest version or is a route, `name@2` does not follow.

        None is the bare base.

        Raises AdapterNotFound; AdapterForbidden; AdapterConflict for what not everybody sees.
        """
        with self._writing:
            with self._transaction() as db:
                actor.check_admin("set the server's default")
                reference = None if default is None else _existing(db, default)
                if reference is not None and not actor.shared and is_private(owner_of(db, reference.name) or ""):
                    raise AdapterConflict(
                        f"{reference.name!r} is a tenant's own, and the default is everybody's", param="adapter"
                    )
                put_default(db, reference)
            if self._journal is not None:
                self._journal.default_set(reference)

    def set_damaged(self, digest: str, reason: str | None) -> None:
        """Note why an adapter's files cannot be used; None: they can."""
        with self.transaction() as db:
            db.execute("DELETE FROM damaged WHERE digest = ?", (digest,))
            if reason is not None:
                db.execute("INSERT INTO damaged VALUES (?, ?)", (digest, reason))

    def replace_damaged(self, reasons: Mapping[str, str]) -> None:
        """Note which adapters' files cannot be used, and why: these and no others."""
        with self.transaction() as db:
            db.execute("DELETE FROM damaged")
            db.executemany("INSERT INTO damaged VALUES (?, ?)", reasons.items())

    # Marks of files that may be deleted

    def mark_disposable(self, digest: str) -> None:
        """Mark files that are about to be stored: they may be deleted again, unless `add` gives them a version."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO disposable VALUES (?)", (digest,))

    def unmark_disposable(self, digest: str) -> None:
        """Drop the mark of files that are deleted."""
        with self.transaction() as db:
            db.execute("DELETE FROM disposable WHERE digest = ?", (digest,))

    def drop_lost_default(self, db: sqlite3.Connection) -> None:
        """Take away a default that names nothing any more, inside a `transaction`, and tell the journal."""
        if drop_lost_default(db) and self._journal is not None:
            self._journal.default_set(None)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block that mends the tables, all of it or nothing, with no other change meanwhile. Raises StoreFull."""
        with self._writing, self._transaction() as db:
            yield db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block, all of it or nothing; the caller holds `_writing`. Raises StoreFull, StoreFailed."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            yield self._writer
            self._writer.execute("COMMIT")
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise StoreFull(NO_ROOM) from None
            if code in _DISK_FAILED:
                raise disk_failed(str(error)) from error
            raise
        finally:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")


def _existing(db: sqlite3.Connection, default: str) -> Reference:
    """Parse the name of an existing adapter, version or route. Raises AdapterNotFound."""
    reference = parse_reference(default)
    if reference is None or not exists(db, reference):
        raise AdapterNotFound(f"there is no adapter or route {default[:140]!r}", param="adapter")
    return reference


def next_version(db: sqlite3.Connection, name: str) -> int:
    """Count up the versions of a name, of an adapter or a route, inside a transaction."""
    (version,) = db.execute(
        "INSERT INTO names VALUES (?, 1) "
        "ON CONFLICT (name) DO UPDATE SET last_version = last_version + 1 RETURNING last_version",
        (name,),
    ).fetchone()
    return int(version)


def check_unnamed(db: sqlite3.Connection, reference: Reference) -> None:
    """Raise AdapterConflict if a route names an adapter, a version or a route that is to go.

    A name without a version is named as long as it has one: a route to it keeps its last.
    """
    name, version = reference
    query = "SELECT DISTINCT route FROM route_targets WHERE name = ?1"
    if version is not None:
        query += (
            " AND (version = ?2 OR version IS NULL AND NOT EXISTS "
            "(SELECT 1 FROM versions WHERE name = ?1 AND version <> ?2))"
        )
    parameters = (name,) if version is None else (name, version)
    routes = [route for (route,) in db.execute(f"{query} ORDER BY route LIMIT 6", parameters)]
    if routes:
        shown = ", ".join(routes[:5]) + (" and others" if len(routes) > 5 else "")
        what = name if version is None else f"{name}@{version}"
        raise AdapterConflict(
            f"{what!r} is named by the route{'s' if len(routes) > 1 else ''} {shown}; change what names it first, or "
            "add ?force=true",
            param="name",
        )


def drop_lost_default(db: sqlite3.Connection) -> bool:
    """Take away a default that names nothing any more, inside a transaction. Returns whether it did."""
    default = read_default(db)
    lost = default is not None and not exists(db, default)
    if lost:
        put_default(db, None)
    return lost


def put_default(db: sqlite3.Connection, reference: Reference | None) -> None:
    """Write the server's default, inside a transaction."""
    db.execute("DELETE FROM default_adapter")
    if reference is not None:
        db.execute("INSERT INTO default_adapter VALUES (1, ?, ?)", reference)
