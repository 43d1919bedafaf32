"""The folder of one running server, with the socket between its processes; and those that killed servers have left.

A server has its folder locked for as long as it runs, however it ends: the next start removes what nobody has locked.
The lock is there before the socket is, so that a folder with a socket and no lock is nobody's.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .forwarding import PRIMARY

PREFIX = "peftserve-"
LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that only this user can enter, with a path short enough for a Unix socket. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    if len(str(folder / PRIMARY)) > LONGEST_SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    lock = os.open(folder, _OPEN)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_left(folder.parent)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_left(parent: Path) -> None:
    """Remove this user's folders of servers that have ended without removing them."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, or gone
            _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder with a socket that no server has locked. Raises OSError for one that is not to be removed."""
    fd = os.open(folder, _OPEN)
    try:
        is_own = os.fstat(fd).st_uid == os.geteuid()
        if is_own and os.listdir(fd) == [PRIMARY] and (folder / PRIMARY).is_socket():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(fd)
