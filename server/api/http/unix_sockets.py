"""A Unix socket to listen on, at a path that may be left over from a server that has died."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from .server import BACKLOG

LONGEST_PATH = 107  # bytes, as the kernel has it


@contextlib.contextmanager
def listening_at(path: Path) -> Iterator[socket.socket]:
    """Listen at a path, and remove the socket at the end. Who may connect is up to the folder and the umask.

    Raises OSError where another server listens, or something else is there.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise OSError(f"--uds {path}: a path of a socket has {LONGEST_PATH} bytes at most")
    _remove_dead(path)
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(path))
        except OSError as error:
            raise OSError(f"cannot listen at {path}: {error.strerror}") from None
        listener.listen(BACKLOG)
        made = path.stat().st_ino
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == made:  # and not that of a server that has taken its place
                    path.unlink()


def _remove_dead(path: Path) -> None:
    """Remove a socket on which nobody listens any more. Raises OSError for anything else that is there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(f"--uds {path}: something that is no socket is there")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError as error:
            raise OSError(f"--uds {path}: {error.strerror}") from None
        else:
            raise OSError(f"cannot listen at {path}: another server does")
