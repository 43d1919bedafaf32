"""Named JSON texts in the registry, each of the newest version only: routes, and what operators set for adapters.

Beside each lies a file, from which a lost registry is made again:

    <state>/<folder>/<name>@<version>.json

The row counts: a file that says something else is written anew at the next start. Knows no text's meaning.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from .folders import fsync_folder, make_folder
from .names import Reference, parse_reference
from .signed_files import read_signed, write_signed

logger = logging.getLogger(__name__)

_END = ".json"


class Document(NamedTuple):
    """One text. created: of this version, in seconds since 1970. body: JSON. owner: whose it is, as of versions."""

    name: str
    version: int
    created: float
    body: str
    owner: str = ""


class DocumentFiles:
    """The files of one kind of documents. A file that cannot be written is a warning: the next start writes it."""

    def __init__(self, folder: Path) -> None:
        """Make the folder where it is missing."""
        make_folder(folder)
        self._folder = folder

    def put(self, document: Document, before: int | None = None) -> None:
        """Write a document's file, and delete that of its version `before`."""
        try:
            write_signed(self._path(document.name, document.version), document)
            fsync_folder(self._folder)
            if before is not None:
                self._path(document.name, before).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("No file of %s could be kept beside the registry (%s)", document.name, error.strerror)

    def remove(self, name: str, version: int) -> None:
        """Delete a document's file. Raises OSError."""
        self._path(name, version).unlink(missing_ok=True)
        fsync_folder(self._folder)

    def settle(self, rows: list[Document], is_valid: Callable[[Document], bool], *, is_new: bool) -> list[Document]:
        """Bring the files to agree with the registry's rows, for the start. Returns what the registry has lost.

        is_new: the registry has just been made, so that documents without a row are lost ones; otherwise their deletion
            was cut off, and they go. is_valid: whether a document can be used.
        """
        files = dict(self._listing())
        known = {Reference(row.name, row.version) for row in rows}
        lost = self._lost(files, {row.name for row in rows}, is_valid) if is_new else []
        kept = known | {Reference(document.name, document.version) for document in lost}
        for row in rows:
            if Reference(row.name, row.version) not in files:
                self.put(row)
        for ref, path in files.items():
            if ref not in kept:
                path.unlink(missing_ok=True)
        return lost

    def _lost(
        self, files: Iterable[Reference], known: set[str], is_valid: Callable[[Document], bool]
    ) -> list[Document]:
        """Return the newest document of each name that has no row.

        A crash between two files of `put` leaves both, and so does a power cut soon after.
        """
        found = [document for ref in files if ref.name not in known and (document := self._read(ref)) is not None]
        found.sort(key=lambda document: document.version)
        return [*{document.name: document for document in found if is_valid(document)}.values()]

    def _listing(self) -> Iterator[tuple[Reference, Path]]:
        for entry in os.scandir(self._folder):
            stem, end = os.path.splitext(entry.name)
            reference = parse_reference(unquote(stem))
            if end == _END and reference is not None and reference.version is not None:
                yield reference, Path(entry.path)
            elif entry.name.startswith("."):
                os.unlink(entry.path)  # half written

    def _read(self, reference: Reference) -> Document | None:
        found = read_signed(self._path(reference.name, reference.version or 0), Document)
        return found if found is not None and found[:2] == reference else None

    def _path(self, name: str, version: int) -> Path:
        return self._folder / f"{quote(name, safe='')}@{version}{_END}"
