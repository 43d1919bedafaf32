"""Folders that a power cut cannot take: a new name is on the disk only when the folder that it is in was synced.

Knows nothing of what lies in them.
"""

import contextlib
import os
from pathlib import Path

PRIVATE = 0o700


def make_folder(path: Path, mode: int = PRIVATE) -> None:
    """Make a folder, and those around it, where they are missing; return when their names are on the disk.

    mode: of the folder itself. A folder around them that may be written and not read cannot be synced, and is not.
    Raises OSError.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for folder in made:
        with contextlib.suppress(PermissionError):
            fsync_folder(folder.parent)


def fsync_folder(path: Path) -> None:
    """Bring what was created, renamed and deleted in a folder to disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
