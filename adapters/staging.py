"""An upload on its way into the store: bytes go to disk under a cap, and are hashed while they are written.

Knows a folder of its own; `files` knows what belongs there, and the store decides where the folder goes.
"""

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import BinaryIO, Self

from .errors import AdapterTooLarge, InvalidAdapter, StoreFailed, StoreFull
from .files import (
    COMPANIONS,
    CONFIG,
    FILES,
    MAX_CONFIG_BYTES,
    WEIGHTS,
    check_file_name,
    digest_of,
    experts_among,
    experts_of,
    missing_file,
)
from .settling import settle
from .source_folder import SourceFolder, unreadable
from .upload_names import is_part, is_surpassed, place_of, why_nothing

logger = logging.getLogger(__name__)

NO_ROOM = "the server's disk has no room for this adapter"
MOST_SKIPPED = 64
MOST_SHOWN = 128  # characters of a name
MAX_COMPANION_BYTES = 1 << 26  # a tokenizer of a quarter of a million words has 17 MB

_CHUNK = 1 << 20


class StagedFile:
    """A file that is being written. Close it, or leave its `with` block, before asking for the upload's digest."""

    def __init__(self, upload: "StagedUpload", name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(upload.path / name, flags, 0o600)
        self._upload = upload
        self._name = name
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises AdapterTooLarge over the upload's cap, StoreFull."""
        self._size += len(chunk)
        self._upload.grow(self._name, self._size, len(chunk))
        self._hash.update(chunk)
        view = memoryview(chunk)
        with translate_disk_errors():
            while view:
                view = view[os.write(self._fd, view) :]

    def close(self) -> None:
        """Bring the file to disk and note its hash. A second call does nothing."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            with translate_disk_errors():
                os.fsync(fd)
        finally:
            os.close(fd)
        self._upload.finish(self._name, self._hash.hexdigest())

    def abandon(self) -> None:
        """Close the file without noting its hash."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close() if error is None else self.abandon()


class StagedUpload:
    """The files of one upload. As a context manager it discards what is not committed.

    path: the folder; the engine inspects the files there. limit: most bytes of all files together.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._limit = limit
        self._size = 0
        self._hashes: dict[str, str] = {}
        self._skipped: list[str] = []
        self._owned = True

    def receive(self, sent: str) -> StagedFile | None:
        """Begin a file of a folder that a client sends, by the client's name; None for one that is not kept.

        `settle` is to be called when all are there. Raises InvalidAdapter, StoreFull.
        """
        name = place_of(sent)
        if name is None or is_surpassed(name, self._hashes):
            self._skipped += [sent[:MOST_SHOWN]] if len(self._skipped) < MOST_SKIPPED else []
            return None
        return self.begin(name)

    def settle(self) -> None:
        """Bring what was received to the form in which adapters are stored. Reads files that it moves.

        Raises AdapterError, OSError.
        """
        with translate_disk_errors():
            if not settle(self.path):
                return
            sent, self._hashes, self._size = self._hashes, {}, 0
            for path in sorted(path for path in self.path.rglob("*") if path.is_file()):
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                self._hashes[path.relative_to(self.path).as_posix()] = sha256
                self._size += path.stat().st_size
        kept = {*self._hashes.values()}
        self._skipped += sorted(name for name, sha256 in sent.items() if sha256 not in kept and not is_part(name))
        del self._skipped[MOST_SKIPPED:]

    def open(self, name: str) -> StagedFile:
        """Begin one of an adapter's files, in any order, each once. Raises InvalidAdapter, StoreFull."""
        check_file_name(name)
        return self.begin(name)

    def begin(self, name: str) -> StagedFile:
        """Begin a file whose name the server has chosen, each once. Raises InvalidAdapter, StoreFull."""
        try:
            with translate_disk_errors():
                (self.path / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                return StagedFile(self, name)
        except FileExistsError:
            raise InvalidAdapter(f"{name} was sent twice", param="files") from None

    def copy_folder(self, folder: Path, *, inside: Sequence[Path] | None = None) -> None:
        """Copy an adapter's files from a folder of this machine. Links are followed, as a hub's cache has them.

        inside: folders below one of which the files must lie, with all links resolved; None allows any.
        Raises InvalidAdapter, AdapterTooLarge, StoreFull.
        """
        source = SourceFolder(folder, inside)
        self._copy_files(source, "")
        for name in COMPANIONS:
            if (file := source.open(name)) is not None:
                self._copy(file, name)
        for expert in experts_of(self.path):
            self._copy_files(source.expert(expert), f"{expert}/")
        self.settle()

    def adopt(self) -> None:
        """Take in an adapter's files that another process has written to the folder, and bring them to disk.

        Raises AdapterTooLarge, StoreFull, OSError.
        """
        for name in FILES:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb") as file, translate_disk_errors():
                size = os.fstat(fd).st_size
                self.grow(name, size, size)
                os.fchmod(fd, 0o600)
                os.fsync(fd)
                self.finish(name, hashlib.file_digest(file, "sha256").hexdigest())

    @property
    def digest(self) -> str:
        """Return the digest of all files. Raises InvalidAdapter if one is missing."""
        if (name := missing_file(self._hashes)) is not None:
            if (why := why_nothing(self._skipped)) is not None:
                raise InvalidAdapter(why, param="files")
            raise InvalidAdapter(f"{name} is missing; an adapter is {CONFIG} and {WEIGHTS}", param="files")
        return digest_of(self._hashes)

    @property
    def experts(self) -> list[str]:
        """Return the names of the experts whose files were sent."""
        return experts_among(self._hashes)

    @property
    def names(self) -> frozenset[str]:
        """Return the names of the files that are whole."""
        return frozenset(self._hashes)

    @property
    def skipped(self) -> list[str]:
        """Return the names of files that were sent and are not kept, the first MOST_SKIPPED of them."""
        return list(self._skipped)

    @property
    def num_bytes(self) -> int:
        """Return the bytes that were written so far."""
        return self._size

    def discard(self) -> None:
        """Delete what was written. Does nothing after a commit, after `hand_over`, or a second time."""
        if self._owned:
            shutil.rmtree(self.path, ignore_errors=True)

    def hand_over(self) -> "StagedUpload":
        """Return the same upload for a new owner, who discards it; this object does not any more."""
        taken = copy(self)
        self._owned = False
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.discard()

    def grow(self, name: str, file_size: int, added: int) -> None:
        """Count bytes about to be written. Raises AdapterTooLarge."""
        self._size += added
        if name.endswith(CONFIG) and file_size > MAX_CONFIG_BYTES:
            raise AdapterTooLarge(f"{CONFIG} is over {MAX_CONFIG_BYTES} bytes", param="files")
        if name in COMPANIONS and file_size > MAX_COMPANION_BYTES:
            raise AdapterTooLarge(f"{name} is over {MAX_COMPANION_BYTES} bytes", param="files")
        if self._size > self._limit:
            raise AdapterTooLarge(f"the adapter is over the limit of {self._limit} bytes", param="files")

    def finish(self, name: str, sha256: str) -> None:
        """Note the hash of a file that is on the disk."""
        self._hashes[name] = sha256

    def _copy_files(self, source: SourceFolder, prefix: str) -> None:
        for name in source.weights():
            kept = prefix + (place_of(name) or name)
            file = source.open(name)
            if file is None:
                raise unreadable(kept)
            self._copy(file, kept)

    def _copy(self, file: BinaryIO, name: str) -> None:
        with file, self.begin(name) as staged:
            while chunk := file.read(_CHUNK):
                staged.write(chunk)


@contextmanager
def translate_disk_errors() -> Iterator[None]:
    """Turn the error of a full disk, or of a used-up quota, into StoreFull; of a failing one into StoreFailed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(NO_ROOM) from None
        if error.errno in (errno.EIO, errno.EROFS):
            raise disk_failed(os.strerror(error.errno)) from error
        raise


def disk_failed(what: str) -> StoreFailed:
    """Return the error for a disk that fails, or has become read-only, and log it: its operator has to know."""
    logger.error("The state folder cannot be written to: %s", what)
    return StoreFailed(f"the server's disk cannot be written to just now ({what}); try again, or tell its operator")
