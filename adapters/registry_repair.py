"""Repairs of the registry's tables before the first look-up: malformed rows out, lost versions back in.

Knows the tables and what a row must be; does not know where lost versions come from.
"""

import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .errors import AdapterError
from .names import Reference, check_name, is_digest
from .registry import AdapterRegistry, drop_lost_default, put_default
from .registry_file import COLUMNS, PLACES, with_defaults
from .registry_reader import AdapterRecord, exists, read_default, record_of, row_of
from .registry_rows import RAISE_LAST


def remove_malformed(registry: AdapterRegistry) -> list[tuple[Any, ...]]:
    """Remove rows that no release has written, and return them: `COLUMNS`, each of whatever type it is.

    A default that names no version is removed too.
    """
    with registry.transaction() as db:
        malformed = [row for row in all_rows(db) if parse_row(row) is None]
        for name, version, *_ in malformed:
            db.execute(f"DELETE FROM versions WHERE {_is(1, 'name')} AND {_is(2, 'version')}", (name, version))
        db.execute("DELETE FROM names WHERE typeof(name) <> 'text' OR typeof(last_version) <> 'integer'")
        db.execute(f"INSERT INTO names SELECT name, max(version) FROM versions WHERE true GROUP BY name {RAISE_LAST}")
        db.execute(
            "DELETE FROM default_adapter WHERE typeof(name) <> 'text' OR typeof(version) NOT IN ('integer', 'null')"
        )
        drop_lost_default(db)
    return malformed


def _is(parameter: int, column: str) -> str:
    """Return SQL that compares a column with a parameter; bytes match themselves and the text that they encode."""
    return f"({column} IS ?{parameter} OR {column} = CAST(?{parameter} AS TEXT))"


def restore(
    registry: AdapterRegistry,
    records: Iterable[AdapterRecord],
    last: Mapping[str, int],
    default: Reference | None = None,
) -> None:
    """Put back versions that the file has lost. Versions that it has stay as they are, and so does its default.

    last: name to a version that it once had, whether or not it still exists.
    """
    rows = [row_of(record) for record in records]
    once = [*last.items(), *((name, version) for name, version, *_ in rows)]
    with registry.transaction() as db:
        db.executemany(f"INSERT INTO names VALUES (?, ?) {RAISE_LAST}", once)
        db.executemany(f"INSERT OR IGNORE INTO versions ({COLUMNS}) VALUES ({PLACES})", rows)
        db.execute("DELETE FROM disposable WHERE digest IN (SELECT digest FROM versions)")
        if default is not None and read_default(db) is None and exists(db, default):
            put_default(db, default)


def replace(registry: AdapterRegistry, records: Iterable[AdapterRecord]) -> None:
    """Overwrite rows of existing versions."""
    rows = [row_of(record) for record in records]
    with registry.transaction() as db:
        db.executemany(f"REPLACE INTO versions ({COLUMNS}) VALUES ({PLACES})", rows)


def all_rows(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Return `COLUMNS` of all versions. Text comes as bytes: damaged text need not be UTF-8."""
    before, db.text_factory = db.text_factory, bytes
    try:
        return [with_defaults(row) for row in db.execute("SELECT * FROM versions")]
    finally:
        db.text_factory = before


def parse_row(row: Sequence[Any]) -> AdapterRecord | None:
    """Parse a row as a damaged file may give it; None unless all of it is valid. Text may be bytes."""
    try:
        name, version, digest, created, *rest = (v.decode() if isinstance(v, bytes) else v for v in row)
        check_name(name)
        if type(version) is int and version > 0 and is_digest(digest) and math.isfinite(float(created)):
            facts, origin, owner = (_text(value) for value in rest)
            return record_of((name, version, digest, float(created), facts, origin, owner))
    except (AdapterError, TypeError, ValueError, OverflowError):
        pass
    return None


def _text(value: Any) -> str:
    """Return a text as it is. Raises TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError
    return value
