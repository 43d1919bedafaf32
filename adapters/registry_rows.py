"""Steps of changes to the registry that more than one change takes. Each runs inside a transaction of the caller."""

import sqlite3
from collections.abc import Iterable

from .registry_file import COLUMNS, PLACES
from .registry_reader import IN_USE, AdapterRecord, row_of

RAISE_LAST = "ON CONFLICT (name) DO UPDATE SET last_version = max(last_version, excluded.last_version)"
"""The end of an INSERT into `names`: the last version of a name is never lowered."""


def insert_version(db: sqlite3.Connection, record: AdapterRecord) -> None:
    """Write the row of a version, whose files must stay from now on."""
    db.execute(f"INSERT INTO versions ({COLUMNS}) VALUES ({PLACES})", row_of(record))
    db.execute("DELETE FROM disposable WHERE digest = ?", (record.digest,))


def mark_unused(db: sqlite3.Connection, digests: Iterable[str]) -> None:
    """Mark those of the digests as disposable that no version has any more."""
    db.executemany(f"INSERT OR IGNORE INTO disposable SELECT ?1 WHERE NOT ({IN_USE})", [(one,) for one in digests])
