"""A folder that appears whole or not at all: made beside its place, and renamed when all of it is on the disk."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peftserve.adapters.folders import fsync_folder, make_folder

from .errors import MergeRefused


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `out` at the end; on any error nothing stays.

    What a killed merge left beside `out` is deleted. Raises MergeRefused if `out` is there, OSError.
    """
    out = out.absolute()
    _refuse_existing(out)
    make_folder(out.parent, mode=0o777)
    _clear(out)
    folder = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    folder.mkdir()
    lock = _locked(folder)
    try:
        yield folder
        _sync(folder)
        _refuse_existing(out)
        os.rename(folder, out)
        fsync_folder(out.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise MergeRefused(f"--out: there is something at {str(out)!r} already; name a new folder")


def _clear(out: Path) -> None:
    """Delete what merges into the same place have left that no longer run."""
    for left in out.parent.glob(f".{out.name}.*.partial"):
        lock = _locked(left)
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Hold a folder for as long as the descriptor is open; None if another process does."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    os.close(fd)
    return None


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            fsync_folder(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
