"""The files of an adapter in a folder of this machine, opened so that nothing outside of what is allowed is ever read.

A path that is checked and then opened by its name is two paths, where somebody swaps a folder for a link in between.
So links are resolved first, and what they lead to is opened from the allowed folder down, name by name, each below the
folder that is open already and following no link: what has become one meanwhile is not there. Knows which files make up
an adapter; knows nothing of where they are copied to.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from .errors import InvalidAdapter
from .files import CONFIG, FILES, WEIGHTS, expert_folder
from .upload_names import ADAPTERHUB_WEIGHTS, INDEX, is_shard

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe without a writer keeps nobody waiting
_PASS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC  # through folders that may not be listed


class SourceFolder:
    """A folder with an adapter's files. Links are followed, as a hub's cache has them.

    inside: folders below one of which the files must lie, with all links resolved; None allows any.
    """

    def __init__(self, folder: Path, inside: Sequence[Path] | None = None) -> None:
        self._folder = folder
        self._inside = inside

    def open(self, name: str) -> BinaryIO | None:
        """Open a file for reading; None where no file has this name.

        Raises InvalidAdapter for one that is outside, or cannot be read.
        """
        try:
            fd = self._descriptor(self._folder / name, _READ)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, RuntimeError):  # links in a circle are the latter
            raise unreadable(name) from None
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return open(fd, "rb")
        os.close(fd)
        return None

    def weights(self) -> list[str]:
        """Return the names of the files that make up an adapter, in whichever form it is saved.

        Raises InvalidAdapter outside.
        """
        if not self._has(WEIGHTS):
            if self._has(ADAPTERHUB_WEIGHTS):
                return [CONFIG, ADAPTERHUB_WEIGHTS]
            if self._has(INDEX):
                return [CONFIG, INDEX, *sorted(name for name in self._names() if is_shard(name))]
        return [*FILES]

    def expert(self, name: str) -> "SourceFolder":
        """Return the folder of an expert."""
        return SourceFolder(expert_folder(self._folder, name), self._inside)

    def _has(self, name: str) -> bool:
        file = self.open(name)
        if file is not None:
            file.close()
        return file is not None

    def _names(self) -> list[str]:
        try:
            fd = self._descriptor(self._folder, _READ | os.O_DIRECTORY)
        except (OSError, RuntimeError):
            raise unreadable(INDEX) from None
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def _descriptor(self, path: Path, flags: int) -> int:
        """Open what a path leads to. Raises InvalidAdapter outside, OSError for what cannot be opened."""
        if self._inside is None:
            return os.open(path, flags)
        real = path.resolve()
        root = next((root for root in map(Path.resolve, self._inside) if real.is_relative_to(root)), None)
        if root is None:
            raise InvalidAdapter("the source lies outside of the folders that the server allows", param="source")
        return open_below(root, real.relative_to(root).parts, flags)


def unreadable(name: str) -> InvalidAdapter:
    """Return the error of a source without one of its files."""
    return InvalidAdapter(f"the source holds no readable {name}", param="source")


def open_below(root: Path, parts: Sequence[str], flags: int) -> int:
    """Return a descriptor of what lies below a folder by these names, none of which is followed where it is a link.

    Raises OSError.
    """
    fd = os.open(root, _PASS)
    try:
        for part in parts[:-1]:
            outer, fd = fd, os.open(part, _PASS | os.O_NOFOLLOW, dir_fd=fd)
            os.close(outer)
        return os.open(parts[-1] if parts else ".", flags | os.O_NOFOLLOW, dir_fd=fd)
    finally:
        os.close(fd)
