"""Look-ups in the registry: the versions of every adapter, and the server's default.

Each is a point look-up or a page in the file; nothing here grows with adapters that nobody asks for. Knows no files of
adapters and no requests.
"""

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import AdapterNotFound
from .facts import AdapterFacts
from .names import Reference, VersionRef
from .registry_file import COLUMNS, disposable_in

_FIND_DEFAULT = """
SELECT v.name, v.version, v.digest, v.created, v.facts FROM default_adapter d
JOIN versions v ON v.name = d.name AND v.version = ifnull(d.version, v.version)
ORDER BY v.version DESC LIMIT 1
"""
Row = tuple[str, int, str, float, str]
"""The columns `COLUMNS` of one version."""


@dataclass(frozen=True)
class AdapterRecord:
    """One version of an adapter. created: seconds since 1970."""

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


class RegistryReader:
    """Look-ups on one connection, from any thread.

    Nothing is remembered between calls: a change by another process is seen as soon as it is committed.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._reader = db
        self._reading = threading.Lock()

    def close(self) -> None:
        with self._reading:
            self._reader.close()

    def find(self, name: str, version: int | None = None) -> AdapterRecord | None:
        """Return the newest version of a name, or the given one; None if there is none."""
        with self._reading:
            row = find_row(self._reader, Reference(name, version))
        return None if row is None else record_of(row)

    def get(self, name: str, version: int | None = None) -> AdapterRecord:
        """Return the newest version of a name, or the given one. Raises AdapterNotFound."""
        record = self.find(name, version)
        if record is None:
            raise not_found(Reference(name, version))
        return record

    def page(self, *, after: str = "", limit: int = 1000) -> list[AdapterRecord]:
        """Return the newest version of each name, by name, beginning behind the name `after`."""
        return self._rows(
            "SELECT v.name, max(v.version), v.digest, v.created, v.facts FROM versions v "
            "WHERE v.name > ? GROUP BY v.name ORDER BY v.name LIMIT ?",
            (after, limit),
        )

    def versions(self, name: str) -> list[AdapterRecord]:
        """Return all versions of a name, oldest first; empty if there is none."""
        return self._rows(f"SELECT {COLUMNS} FROM versions WHERE name = ? ORDER BY version", (name,))

    def count(self) -> int:
        """Return the number of names."""
        return int(self._value("SELECT count(DISTINCT name) FROM versions", ()))

    def in_use(self, digest: str) -> bool:
        """Return whether any version has this digest."""
        return bool(self._value("SELECT EXISTS (SELECT 1 FROM versions WHERE digest = ?)", (digest,)))

    def refs(self) -> Iterator[VersionRef]:
        """Iterate over every version of every adapter, read in pages."""
        name, version = "", 0
        while page := self._rows(
            f"SELECT {COLUMNS} FROM versions WHERE (name, version) > (?, ?) ORDER BY name, version LIMIT 500",
            (name, version),
        ):
            yield from (record.ref for record in page)
            name, version, _ = page[-1].ref

    def get_default(self) -> Reference | None:
        """Return the server's default as it was set; None is the bare base."""
        with self._reading:
            return read_default(self._reader)

    def find_default(self) -> AdapterRecord | None:
        """Return the version that answers for the default now, in one look-up, so that no change comes in between."""
        with self._reading:
            row = self._reader.execute(_FIND_DEFAULT).fetchone()
        return None if row is None else record_of(row)

    def disposable(self) -> set[str]:
        """Return the digests of uploads and deletions that have not ended, and that no version has."""
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
            return [record_of(row) for row in self._reader.execute(query, parameters)]

    def _value(self, query: str, parameters: tuple[object, ...]) -> int:
        with self._reading:
            row: tuple[int] = self._reader.execute(query, parameters).fetchone()
        return row[0]


def find_row(db: sqlite3.Connection, reference: Reference) -> Row | None:
    """Return the row of the newest version of a name, or of the given one; None if there is none."""
    row: Row | None = db.execute(
        f"SELECT {COLUMNS} FROM versions WHERE name = ?1 AND version = ifnull(?2, version) "
        "ORDER BY version DESC LIMIT 1",
        reference,
    ).fetchone()
    return row


def read_default(db: sqlite3.Connection) -> Reference | None:
    """Return the server's default as it was set; None is the bare base."""
    row = db.execute("SELECT name, version FROM default_adapter").fetchone()
    return None if row is None else Reference(*row)


def record_of(row: Row) -> AdapterRecord:
    """Return a row of the file as a record. Raises ValueError if its facts cannot be read."""
    name, version, digest, created, facts = row
    return AdapterRecord(VersionRef(name, version, digest), created, AdapterFacts.from_json(facts))


def not_found(reference: Reference) -> AdapterNotFound:
    """Return the error for a name, or a version of it, that is not there."""
    name, version = reference
    return AdapterNotFound(f"there is no adapter {name if version is None else f'{name}@{version}'!r}")
