"""Steps of changes to the registry that more than one change takes. Each runs inside a transaction of the caller."""

import sqlite3
from collections.abc import Iterable

from .errors import AdapterConflict
from .registry_file import COLUMNS, PLACES
from .registry_reader import IN_USE, AdapterRecord, is_route, row_of


def check_no_route(db: sqlite3.Connection, name: str) -> None:
    """Raise AdapterConflict if a route has this name."""
    if is_route(db, name):
        raise AdapterConflict(f"there is a route {name!r}; choose another name", param="name")


def insert_version(db: sqlite3.Connection, record: AdapterRecord) -> None:
    """Write the row of a version, whose files must stay from now on."""
    db.execute(f"INSERT INTO versions ({COLUMNS}) VALUES ({PLACES})", row_of(record))
    db.execute("DELETE FROM disposable WHERE digest = ?", (record.digest,))


def mark_unused(db: sqlite3.Connection, digests: Iterable[str]) -> None:
    """Mark those of the digests as disposable that no version has any more."""
    db.executemany(f"INSERT OR IGNORE INTO disposable SELECT ?1 WHERE NOT ({IN_USE})", [(one,) for one in digests])
