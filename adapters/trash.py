"""Deleted versions that can be restored for a while. Each function runs inside a transaction, or reads.

Their files stay in the store, their rows lie in the table `deleted`. Knows no files.
"""

import sqlite3
from typing import Any

from .errors import AdapterNotFound
from .names import Reference, VersionRef
from .registry_file import COLUMNS
from .registry_reader import AdapterRecord, RegistryReader, check_no_route, record_of
from .registry_rows import insert_version, mark_unused

_OF = "name = ?1 AND version = ifnull(?2, version)"


def take_back(db: sqlite3.Connection, reference: Reference, now: float) -> list[AdapterRecord]:
    """Make deleted versions of a name, or one of them, what they were. Returns them, oldest first.

    Raises AdapterNotFound where there is none, or its time is over; AdapterConflict if a route has the name.
    """
    query = f"SELECT {COLUMNS} FROM deleted WHERE {_OF} AND until > ?3 ORDER BY version"
    records = [record_of(row) for row in db.execute(query, (*reference, now))]
    if not records:
        raise nothing_of(reference)
    check_no_route(db, reference.name)
    for record in records:
        insert_version(db, record)
        db.execute("DELETE FROM deleted WHERE name = ? AND version = ?", (record.name, record.version))
    return records


def nothing_of(reference: Reference) -> AdapterNotFound:
    """Return the error for a name, or a version of it, of which nothing can be restored."""
    what = reference.name if reference.version is None else f"{reference.name}@{reference.version}"
    return AdapterNotFound(f"there is nothing deleted of {what!r} that could be restored", param="name")


def discard(db: sqlite3.Connection, reference: Reference) -> list[VersionRef]:
    """Give up deleted versions of a name, or one of them. Returns them."""
    return _discard(db, _OF, reference)


def discard_overdue(db: sqlite3.Connection, now: float) -> list[VersionRef]:
    """Give up the deleted versions whose time is over. Returns them."""
    return _discard(db, "until <= ?1", (now,))


def kept(reader: RegistryReader, reference: Reference) -> list[VersionRef]:
    """Return what of a name could be restored."""
    query = f"SELECT name, version, digest FROM deleted WHERE {_OF} ORDER BY version"
    return [VersionRef(*row) for row in reader.read(query, tuple(reference))]


def next_overdue(reader: RegistryReader) -> float | None:
    """Return when the next deleted version's time is over; None if there is none."""
    until: float | None = reader.read("SELECT min(until) FROM deleted")[0][0]
    return until


def _discard(db: sqlite3.Connection, condition: str, values: tuple[Any, ...]) -> list[VersionRef]:
    refs = [
        VersionRef(*row) for row in db.execute(f"SELECT name, version, digest FROM deleted WHERE {condition}", values)
    ]
    db.execute(f"DELETE FROM deleted WHERE {condition}", values)
    mark_unused(db, {ref.digest for ref in refs})
    return refs
