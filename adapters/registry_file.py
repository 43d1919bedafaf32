"""The registry's file: how SQLite opens it, its tables, and what can be read of a damaged one.

Knows SQLite and the columns; knows nothing of what the rows mean.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .errors import StateUnusable
from .names import is_digest

NAME = "registry.sqlite"
COLUMNS = "name, version, digest, created, facts, origin, owner"
"""Of a version. Those of older schemas lack the last ones, which have defaults."""
PLACES = "?, ?, ?, ?, ?, ?, ?"
_COMPANIONS = ("-wal", "-shm", "-journal")
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_FIRST = """
CREATE TABLE names (name TEXT PRIMARY KEY, last_version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE versions (
    name TEXT NOT NULL REFERENCES names, version INTEGER NOT NULL, digest TEXT NOT NULL, created REAL NOT NULL,
    facts TEXT NOT NULL, PRIMARY KEY (name, version)
) WITHOUT ROWID;
CREATE INDEX versions_by_digest ON versions (digest);
CREATE TABLE default_adapter (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL, version INTEGER)
"""
# Digests of uploads and deletions that have not ended: their files may be deleted where no version has them.
_SECOND = "CREATE TABLE disposable (digest TEXT PRIMARY KEY) WITHOUT ROWID"
# `documents` are named JSON texts: routes, and settings of adapters. `route_targets` says who names whom.
# `deleted` has versions that can be restored; `damaged` digests whose files cannot be read.
_THIRD = """
ALTER TABLE versions ADD COLUMN origin TEXT NOT NULL DEFAULT '{}';
ALTER TABLE versions ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE TABLE documents (
    kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, created REAL NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
CREATE TABLE route_targets (name TEXT NOT NULL, version INTEGER, route TEXT NOT NULL);
CREATE INDEX route_targets_by_name ON route_targets (name);
CREATE INDEX route_targets_by_route ON route_targets (route);
CREATE TABLE deleted (
    name TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, created REAL NOT NULL, facts TEXT NOT NULL,
    origin TEXT NOT NULL, owner TEXT NOT NULL, until REAL NOT NULL, PRIMARY KEY (name, version)
) WITHOUT ROWID;
CREATE INDEX deleted_by_digest ON deleted (digest);
CREATE TABLE damaged (digest TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID
"""
# Whose a route is, as `owner` of a version is.
_FOURTH = "ALTER TABLE documents ADD COLUMN owner TEXT NOT NULL DEFAULT ''"
_STEPS: Sequence[str] = (_FIRST, _SECOND, _THIRD, _FOURTH)  # step i brings a file from schema i to schema i + 1
SCHEMA_VERSION = len(_STEPS)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, and make it where it is missing. Raises sqlite3.Error."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


def existing(path: Path) -> sqlite3.Connection:
    """Open a file that exists, to read it.

    Not with SQLite's `ro`, which cannot take in what a killed server left in the log beside the file. Text of damaged
    rows need not be UTF-8.
    """
    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=rw", uri=True, isolation_level=None, timeout=10)
    db.text_factory = _lenient
    return db


def migrate(db: sqlite3.Connection) -> None:
    """Bring the tables to this release's schema, inside a transaction. Raises StateUnusable for a newer release's."""
    version = _schema_of(db)
    if not 0 <= version <= SCHEMA_VERSION:
        raise StateUnusable(
            f"the registry of adapters was written by another release of peftserve (schema {version}, this one knows "
            f"{SCHEMA_VERSION}); serve this state folder with that release, or choose another --state-dir"
        )
    for statement in ";".join(_STEPS[version:]).split(";"):
        if statement.strip():
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def disposable_in(db: sqlite3.Connection) -> set[str]:
    """Return the digests whose files may be deleted; a file of the first schema has none."""
    if _schema_of(db) < 2:
        return set()
    query = "SELECT digest FROM disposable WHERE digest NOT IN (SELECT digest FROM versions)"
    if _schema_of(db) >= 3:
        query += " AND digest NOT IN (SELECT digest FROM deleted)"
    return {digest for (digest,) in db.execute(query) if is_digest(digest)}


def restorable_in(db: sqlite3.Connection) -> set[str]:
    """Return the digests of versions that were deleted and can be restored; none in a file of an older schema."""
    if _schema_of(db) < 3:
        return set()
    return {digest for (digest,) in db.execute("SELECT digest FROM deleted") if is_digest(digest)}


def files_of(path: Path) -> list[Path]:
    """Return the file and those that SQLite keeps beside it, as far as they exist."""
    files = [path, *(path.with_name(path.name + end) for end in _COMPANIONS)]
    return [file for file in files if file.exists() or file.is_symlink()]


def fault_of(path: Path) -> str | None:
    """Return what is wrong with the file of a registry, as the end of a sentence about it; None if nothing is.

    Changes nothing. Raises StateUnusable where the file may well be whole, but cannot be read or is a newer release's.
    """
    if not path.exists():
        return "is missing" if files_of(path) else None
    with translate_errors():
        try:
            if path.stat().st_size == 0:
                return "is empty"
            with closing(existing(path)) as db:
                return _fault_inside(db)
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                return f"is damaged ({error})"
            raise
        except UnicodeError:  # in a message that quotes damaged text
            return "is damaged (its text is no text)"


def salvage(path: Path) -> list[tuple[Any, ...]]:
    """Return the rows of all versions that a damaged file still gives, as `COLUMNS`, unchecked."""
    rows: list[tuple[Any, ...]] = []
    try:
        with closing(existing(path)) as db:
            for row in db.execute("SELECT * FROM versions"):
                rows.append(with_defaults(row))
    except (sqlite3.Error, OSError, UnicodeError, OverflowError):
        pass
    return rows


def with_defaults(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a version's row of any schema with all of `COLUMNS`."""
    return row + ("{}", "")[len(row) - 7 :] if len(row) < 7 else row


def copy_to(path: Path, target: Path) -> None:
    """Copy the file as of one moment, also while a server writes. Raises StateUnusable, OSError."""
    with translate_errors(), closing(existing(path)) as source, closing(sqlite3.connect(target)) as db:
        source.backup(db)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn SQLite's errors into StateUnusable, as one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        raise StateUnusable(f"the registry of adapters cannot be read or written: {error}") from None


def _fault_inside(db: sqlite3.Connection) -> str | None:
    problems = [row[0] for row in db.execute("PRAGMA integrity_check(1)") if row[0] != "ok"]
    if problems:
        return f"is damaged ({problems[0].splitlines()[-1]})"  # before it stands in which database
    version = _schema_of(db)
    if not 0 <= version <= SCHEMA_VERSION:
        return None  # of a newer release: `migrate` raises the error
    for table in _tables(version):
        try:
            db.execute(f"SELECT * FROM {table} LIMIT 1").fetchall()
        except sqlite3.OperationalError:
            return f"is damaged (it has no table {table})"
    if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return "is damaged (it has tables and no version)"
    return None


def _tables(version: int) -> Sequence[str]:
    tables = ("names", "versions", "default_adapter", "disposable", "documents", "route_targets", "deleted", "damaged")
    return tables[: (0, 3, 4, 8, 8)[version]]


def _lenient(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _schema_of(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGED
