"""A record of each version beside the adapters' files, from which a lost registry is made again.

    <state>/versions/<name>@<version>.json     of an existing version
    <state>/versions/<name>@<version>.gone     of a name's newest version, if it was deleted: no number is used twice
    <state>/versions/default.json              the server's default

A record is written after its row, and deleted before it. So a record without a row is never of a version that was
deleted or refused: the registry has lost it. Each carries the SHA-256 of its content.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from .facts import AdapterFacts
from .folders import fsync_folder, make_folder
from .names import Reference, VersionRef, is_digest, parse_reference
from .registry_reader import AdapterRecord
from .signed_files import read_signed, write_signed

logger = logging.getLogger(__name__)

FOLDER = "versions"
DEFAULT_FILE = "default.json"
_HERE, _GONE = ".json", ".gone"


class _Version(msgspec.Struct):
    name: str
    version: int
    digest: str
    created: float
    facts: AdapterFacts
    origin: dict[str, Any] = {}
    owner: str = ""


class _Default(msgspec.Struct):
    name: str | None
    version: int | None


class Listing(msgspec.Struct):
    """The folder's content, by file names. here: versions with a record. gone: deleted ones. strange: other files."""

    here: set[Reference]
    gone: set[Reference]
    strange: list[Path]


class VersionRecords:
    """The registry's journal. A record that cannot be written is a warning: the next change, or start, writes it."""

    def __init__(self, folder: Path) -> None:
        """Make the folder where it is missing."""
        make_folder(folder)
        self.folder = folder
        self._owed: dict[Reference, AdapterRecord] = {}  # records that the disk has not taken yet
        self._default_owed: tuple[Reference | None] | None = None  # and the default, if it has not

    # Called by the registry at each change

    def added(self, record: AdapterRecord) -> None:
        """Write the record of a new version, or of one that was not removed after all."""
        self._owed[Reference(record.name, record.version)] = record
        self._write_owed()

    def removing(self, refs: Sequence[VersionRef], last: Mapping[str, int]) -> None:
        """Delete the records of versions whose rows go next.

        last: name to the newest version that it ever had. Raises OSError where a record cannot be deleted: its version
        must not be deleted then.
        """
        for name, version, _ in refs:
            if version == last.get(name):
                self._mark_gone(Reference(name, version))
            self.path(Reference(name, version)).unlink(missing_ok=True)
            self._owed.pop(Reference(name, version), None)
        fsync_folder(self.folder)

    def default_set(self, default: Reference | None) -> None:
        """Write the server's default; None is the bare base."""
        self._default_owed = (default,)
        self._write_owed()

    # Called at the start

    def write(self, records: Iterable[AdapterRecord]) -> None:
        """Write records, and return when they are on the disk. Raises OSError."""
        written = list(records)
        for record in written:
            ref = Reference(record.name, record.version)
            content = _Version(*record.ref, record.created, record.facts, dict(record.origin), record.owner)
            write_signed(self.path(ref), content, durable=len(written) == 1)
            self._forget_gone(ref)
        if len(written) > 1:
            os.sync()  # one wait for all: opening an older release's folder may write ten thousand
        fsync_folder(self.folder)

    def forget_gone(self, there: Iterable[Reference]) -> None:
        """Delete the marks of versions that exist: a kill cut off their deletion, or the end of their restoration."""
        for reference in there:
            self._path(reference, _GONE).unlink(missing_ok=True)

    def listing(self) -> Listing:
        """List the folder, without reading any record."""
        listing = Listing(set(), set(), [])
        for entry in os.scandir(self.folder):
            stem, end = os.path.splitext(entry.name)
            reference = parse_reference(unquote(stem))
            if reference is not None and reference.version is not None and end in (_HERE, _GONE):
                (listing.here if end == _HERE else listing.gone).add(reference)
            elif entry.name != DEFAULT_FILE and not entry.name.startswith("."):
                listing.strange.append(Path(entry.path))
        return listing

    def clear_half_written(self) -> None:
        """Delete the files that a kill left half written. For the start."""
        for path in self.folder.glob(".*"):
            path.unlink()

    def read(self, reference: Reference) -> AdapterRecord | None:
        """Read one version's record; None where it is missing, damaged or another version's."""
        found = read_signed(self.path(reference), _Version)
        if found is None or (found.name, found.version) != reference or not is_digest(found.digest):
            return None
        ref = VersionRef(found.name, found.version, found.digest)
        return AdapterRecord(ref, found.created, found.facts, found.origin, found.owner)

    def read_default(self) -> Reference | None:
        """Read the server's default; None where none is set, or the file cannot be read."""
        found = read_signed(self.folder / DEFAULT_FILE, _Default)
        return None if found is None or found.name is None else Reference(found.name, found.version)

    def path(self, reference: Reference) -> Path:
        """Return the path of a version's record."""
        return self._path(reference, _HERE)

    def _path(self, reference: Reference, end: str) -> Path:
        return self.folder / f"{quote(reference.name, safe='')}@{reference.version}{end}"

    def _write_owed(self) -> None:
        """Write what has not been written. A disk that takes nothing now may do so at the next change."""
        try:
            for reference, record in tuple(self._owed.items()):
                self.write([record])
                del self._owed[reference]
            if self._default_owed is not None:
                write_signed(self.folder / DEFAULT_FILE, _Default(*(self._default_owed[0] or (None, None))))
                fsync_folder(self.folder)
                self._default_owed = None
        except OSError as error:
            _not_kept(", ".join([*(f"{name}@{version}" for name, version in self._owed)][:3]) or "the default", error)

    def _mark_gone(self, reference: Reference) -> None:
        try:
            self._path(reference, _GONE).touch(mode=0o600)
        except OSError as error:
            _not_kept(f"that {reference.name}@{reference.version} is gone", error)

    def _forget_gone(self, newest: Reference) -> None:
        """Delete the marks of deleted versions that this newer version makes needless."""
        for version in (newest.version, (newest.version or 1) - 1):
            self._path(Reference(newest.name, version), _GONE).unlink(missing_ok=True)


def _not_kept(what: str, error: OSError) -> None:
    logger.warning(
        "No record of %s could be kept beside the registry (%s); the next change, or start, writes it",
        what,
        error.strerror,
    )
