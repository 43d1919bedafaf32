"""Adapters' files on disk: whole or absent, under the digest of their content, written once.

    <state>/lock                        held while a server uses the folder
    <state>/staging/<random>/           uploads in progress and folders on their way out
    <state>/adapters/<digest>/          the adapter's files, as `files` names them
    <state>/lost+found/                 quarantine: files of no version and damaged ones, deleted by nobody but a person
    <state>/compiled/                   the engine's: compiled adapters, deleted whenever it starts

A folder gets to and leaves `adapters/` by one rename, so that a kill at any point leaves it whole or absent. Knows
no names, no registry, and nothing of what the files say.
"""

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from .errors import AdapterConflict, InvalidAdapter
from .files import content_digest
from .folders import fsync_folder, make_folder
from .names import is_digest
from .staging import StagedUpload, translate_disk_errors

ADAPTERS = "adapters"


class AdapterStore:
    """The folder of one server. Methods may run on any thread.

    The caller sees to it that no two calls on one digest overlap (`AdapterLibrary` does).
    """

    def __init__(self, state_dir: Path) -> None:
        """Make the folders where they are missing. Raises AdapterConflict if another server holds them."""
        self._root = state_dir.resolve()
        self._adapters = self._root / ADAPTERS
        self._staging = self._root / "staging"
        self._lost = self._root / "lost+found"
        for folder in (self._root, self._adapters, self._staging):
            _make_real_folder(folder)
        self._lock = _lock(self._root / "lock")

    def close(self) -> None:
        os.close(self._lock)

    @property
    def adapters(self) -> Path:
        """Return the folder that holds one sub-folder per digest."""
        return self._adapters

    def stage(self, limit: int) -> StagedUpload:
        """Begin an upload of `limit` bytes at most. Raises StoreFull."""
        with translate_disk_errors():
            return StagedUpload(self._new_staging(), limit)

    def commit(self, staged: StagedUpload) -> str:
        """Move a complete upload into the store and return its digest; the same content again is not stored twice.

        Raises InvalidAdapter if a file is missing, StoreFull.
        """
        digest = staged.digest
        target = self.path(digest)
        with translate_disk_errors():
            for expert in staged.experts:
                fsync_folder(staged.path / expert)
            fsync_folder(staged.path)
            if not self._can_stay(digest):
                self._set_aside(target)
                os.rename(staged.path, target)
                fsync_folder(self._adapters)
        staged.discard()
        return digest

    def remove(self, digest: str) -> None:
        """Delete an adapter's files, if they exist."""
        aside = self._set_aside(self.path(digest))
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)

    def path(self, digest: str) -> Path:
        """Return the folder of a digest, whether it exists or not. Raises InvalidAdapter for no digest."""
        if not is_digest(digest):
            raise InvalidAdapter("a digest is 64 hexadecimal digits")
        return self._adapters / digest

    def has(self, digest: str) -> bool:
        """Return whether the folder of a digest exists. Reads no file."""
        path = self.path(digest)
        return path.is_dir() and not path.is_symlink()

    def is_whole(self, digest: str) -> bool:
        """Return whether the files exist and their content has this digest. Reads all of them. Raises OSError."""
        return self.has(digest) and content_digest(self.path(digest)) == digest

    def quarantine(self, *paths: Path) -> str:
        """Move files or folders to `lost+found`. Returns their new place, relative to the state folder."""
        place = self._new_place()
        for path in paths:
            os.rename(path, place / path.name)
        fsync_folder(place)  # first: at no moment may a file have neither name on the disk
        for folder in {path.parent for path in paths}:
            fsync_folder(folder)
        return str((place / paths[0].name if len(paths) == 1 else place).relative_to(self._root))

    def quarantine_text(self, name: str, text: str) -> str:
        """Write a text to a file of this name in `lost+found`. Returns its place, relative to the state folder."""
        path = self._new_place() / name
        path.write_text(text, encoding="utf-8")
        return str(path.relative_to(self._root))

    def clear_staging(self) -> None:
        """Delete what a kill left in the staging folder. For the start."""
        for entry in os.scandir(self._staging):
            _delete(entry)

    def unknown_folders(self, known: Collection[str]) -> list[Path]:
        """Return the entries beside the adapters that are not of `known` digests."""
        return sorted(self._adapters / name for name in self.digests() if name not in known or not self.has(name))

    def digests(self) -> Iterator[str]:
        """Iterate over the names of all entries, whether they are digests or not."""
        with os.scandir(self._adapters) as entries:
            yield from (entry.name for entry in entries)

    def check_integrity(self) -> None:
        """Raise RuntimeError naming every folder that is not whole. Reads every file."""
        broken = [name for name in self.digests() if not is_digest(name) or not self.is_whole(name)]
        if broken:
            raise RuntimeError(f"not whole in the adapter store: {', '.join(sorted(broken)[:5])} ({len(broken)})")

    def _can_stay(self, digest: str) -> bool:
        """Return whether the adapter is whole and readable, so that it need not be replaced by the same content."""
        try:
            return self.is_whole(digest)
        except OSError:
            return False

    def _new_staging(self) -> Path:
        path = self._staging / secrets.token_hex(16)
        path.mkdir(mode=0o700)
        return path

    def _new_place(self) -> Path:
        """Make a folder in `lost+found`, named by the time, for a person to look through."""
        name = f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{secrets.token_hex(3)}"
        try:
            return self._made(self._lost / name)
        except PermissionError:  # at a volume's root, `lost+found` belongs to the file system
            return self._made(self._root / "lost-and-found" / name)

    def _made(self, place: Path) -> Path:
        place.mkdir(mode=0o700, parents=True)
        fsync_folder(place.parent)
        fsync_folder(self._root)
        return place

    def _set_aside(self, path: Path) -> Path | None:
        """Rename a folder into staging, where the next start deletes what is left of it; None if it does not exist."""
        aside = self._staging / secrets.token_hex(16)
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return None
        fsync_folder(self._adapters)
        return aside


def _make_real_folder(folder: Path) -> None:
    make_folder(folder)
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


def _delete(entry: "os.DirEntry[str]") -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        os.unlink(entry.path)
