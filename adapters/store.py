"""Adapters' files on disk: whole or absent, under the digest of their content, written once.

    <state>/lock                        held while a server uses the folder
    <state>/staging/<random>/           uploads in progress and folders on their way out
    <state>/adapters/<digest>/          the adapter's files, as `files` names them
    <state>/compiled/                   not ours: what the engine has made of them, deleted whenever it starts

A folder gets to and leaves `adapters/` by one rename, so that a kill at any point leaves it whole or absent. Knows
no names, no registry, and nothing of what the files say.
"""

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import AdapterConflict, InvalidAdapter
from .files import digest_of, missing_file
from .staging import StagedUpload, fsync_folder, full_disk_named

_DIGEST = re.compile(r"[0-9a-f]{64}")


class AdapterStore:
    """The folder of one server. Methods may run on any thread; of two calls on one digest, the caller sees that they
    do not overlap (`AdapterLibrary` does).
    """

    def __init__(self, state_dir: Path) -> None:
        """Make the folders where they are missing. Raises AdapterConflict if another server holds them."""
        self._root = state_dir.resolve()
        self._adapters = self._root / "adapters"
        self._staging = self._root / "staging"
        for folder in (self._root, self._adapters, self._staging):
            _make_folder(folder)
        self._lock = _lock(self._root / "lock")

    def close(self) -> None:
        os.close(self._lock)

    @property
    def adapters(self) -> Path:
        """The folder that holds one sub-folder per digest."""
        return self._adapters

    def stage(self, limit: int) -> StagedUpload:
        """Begin an upload of `limit` bytes at most. Raises StoreFull."""
        with full_disk_named():
            return StagedUpload(self._new_staging(), limit)

    def commit(self, staged: StagedUpload) -> str:
        """Move a complete upload into the store and return its digest; the same content again is not stored twice.

        Raises InvalidAdapter if a file is missing, StoreFull.
        """
        digest = staged.digest
        target = self.path(digest)
        with full_disk_named():
            for expert in staged.experts:
                fsync_folder(staged.path / expert)
            fsync_folder(staged.path)
            if not self.is_whole(digest):
                self._set_aside(target)
                os.rename(staged.path, target)
                fsync_folder(self._adapters)
        staged.discard()
        return digest

    def remove(self, digest: str) -> None:
        """Delete an adapter's files; an absent one is fine."""
        aside = self._set_aside(self.path(digest))
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)

    def path(self, digest: str) -> Path:
        """The folder of a digest, whether it exists or not."""
        if not _DIGEST.fullmatch(digest):
            raise InvalidAdapter("a digest is 64 hexadecimal digits")
        return self._adapters / digest

    def has(self, digest: str) -> bool:
        path = self.path(digest)
        return path.is_dir() and not path.is_symlink()

    def is_whole(self, digest: str) -> bool:
        """Whether the files are there and their content has this digest. Reads all of them."""
        return self.has(digest) and _content_digest(self.path(digest)) == digest

    def sweep(self, in_use: Callable[[str], bool]) -> int:
        """Delete what a kill left behind: everything staged, and every adapter that is not in use. For the start.

        Returns the number of adapters deleted.
        """
        for entry in os.scandir(self._staging):
            _delete(entry)
        orphans = [e for e in os.scandir(self._adapters) if not _DIGEST.fullmatch(e.name) or not in_use(e.name)]
        for entry in orphans:
            self._set_aside(Path(entry.path))
        for entry in os.scandir(self._staging):
            _delete(entry)
        return len(orphans)

    def digests(self) -> Iterator[str]:
        with os.scandir(self._adapters) as entries:
            yield from (entry.name for entry in entries)

    def check_integrity(self) -> None:
        """Raise RuntimeError naming every folder that is not whole. Reads every file."""
        broken = [name for name in self.digests() if not _DIGEST.fullmatch(name) or not self.is_whole(name)]
        if broken:
            raise RuntimeError(f"not whole in the adapter store: {', '.join(sorted(broken)[:5])} ({len(broken)})")

    def _new_staging(self) -> Path:
        path = self._staging / secrets.token_hex(16)
        path.mkdir(mode=0o700)
        return path

    def _set_aside(self, path: Path) -> Path | None:
        """Rename into staging, where the next start deletes it if we do not get to; None if it is not there."""
        aside = self._staging / secrets.token_hex(16)
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return None
        fsync_folder(self._adapters)
        return aside


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink():
        raise AdapterConflict(f"{folder} is a symbolic link; the state folder may not hold any")


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise AdapterConflict("another server uses this state folder; stop it, or choose another --state-dir") from None
    return fd


def _content_digest(folder: Path) -> str | None:
    """The digest that the files of `folder` have; None if they are not exactly ours."""
    names = [os.path.relpath(os.path.join(path, name), folder) for path, _, files in os.walk(folder) for name in files]
    if missing_file(names) is not None:
        return None
    hashes = {}
    for name in names:
        try:
            fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        with open(fd, "rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of(hashes)


def _delete(entry: "os.DirEntry[str]") -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        os.unlink(entry.path)
