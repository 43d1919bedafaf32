"""What a cut of the power leaves of a folder, under the strictest reading of what a sync promises.

A file has the content of its last sync, and a folder the names of its last one: what was created, renamed or deleted
since then is as it was. `shim.c` keeps both, in a process that was started with `FAULTS_SHADOW`; this module makes the
folder out of them. A file that is mapped into memory, or written by calls that the library does not see, needs nothing
more: its content is read when it is synced. Knows nothing of what the files are.
"""

import ctypes
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

VARIABLE = "FAULTS_SHADOW"
_HERE = -100  # AT_FDCWD
_LONGEST_KEY = 128


class Loss(NamedTuple):
    """What a cut takes. names, contents: how likely a folder, and a file, is to be as it was written, not as synced.

    A disk is free to write more than it was asked to, and in any order.
    filler: what is in a file that was never synced, again and again up to its length.
    """

    what: str
    names: float = 0.0
    contents: float = 0.0
    filler: bytes = b""


LOSSES = (
    Loss("all that was not synced"),
    Loss("all that was not synced, with garbage in new files", filler=b"\xa5"),
    Loss("all contents that were not synced, and no names", names=1.0, filler=b"\0"),
    Loss("some of what was not synced", names=0.5, contents=0.5),
)


class Shadow:
    """What is durable of one folder, `root`."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._key = ctypes.CDLL(None).faults_key

    @classmethod
    def of_environment(cls, root: Path) -> Self:
        """Return the shadow that this very process was started with."""
        return cls(root, Path(os.environ[VARIABLE]))

    def begin(self) -> None:
        """Take all that is there to be durable, and nothing else."""
        shutil.rmtree(self._folder)
        self._folder.mkdir()
        os.sync()  # the library's own

    def cut(self, loss: Loss, seed: object, target: Path) -> None:
        """Write what a cut leaves to `target`, which is made anew."""
        shutil.rmtree(target, ignore_errors=True)
        written = {self._key_of(path): path for path in (self._root, *self._root.rglob("*"))}
        _Cut(self, written, loss, random.Random(f"{loss.what} {seed}")).write(self._key_of(self._root), target)

    def names_of(self, key: str) -> dict[str, str]:
        """Return the names that a folder had when it was synced, each with a key; none if it never was."""
        file = self._folder / key
        lines = os.fsdecode(file.read_bytes()).splitlines() if file.exists() else []
        return {name: key for key, _, name in (line.partition("/") for line in lines)}

    def names_in(self, folder: Path) -> dict[str, str]:
        """Return the names that a folder has, each with a key."""
        return {path.name: self._key_of(path) for path in folder.iterdir()}

    def content_of(self, key: str) -> bytes | None:
        """Return the content that a file had when it was synced; None if it never was."""
        file = self._folder / key
        return file.read_bytes() if file.exists() else None

    def _key_of(self, path: Path) -> str:
        key = ctypes.create_string_buffer(_LONGEST_KEY)
        if not self._key(_HERE, os.fsencode(path), key, ctypes.c_size_t(_LONGEST_KEY)):
            raise FileNotFoundError(path)
        return key.value.decode()


class _Cut:
    """One cut. written: key to the path of all that is there without it."""

    def __init__(self, shadow: Shadow, written: Mapping[str, Path], loss: Loss, rng: random.Random) -> None:
        self._shadow, self._written, self._loss, self._rng = shadow, written, loss, rng
        self._contents: dict[str, bytes] = {}  # a file that has two names is one file

    def write(self, key: str, target: Path) -> None:
        target.mkdir(mode=0o700)
        for name, entry in sorted(self._names(key).items()):
            if entry.startswith("d"):
                self.write(entry, target / name)
            else:
                (target / name).write_bytes(self._content(entry))

    def _names(self, key: str) -> dict[str, str]:
        if key in self._written and self._rng.random() < self._loss.names:
            return self._shadow.names_in(self._written[key])
        return self._shadow.names_of(key)

    def _content(self, key: str) -> bytes:
        if key not in self._contents:
            self._contents[key] = self._content_left(key)
        return self._contents[key]

    def _content_left(self, key: str) -> bytes:
        written = self._written[key].read_bytes() if key in self._written else None
        if written is not None and self._rng.random() < self._loss.contents:
            return written
        durable = self._shadow.content_of(key)
        return self._loss.filler * len(written or b"") if durable is None else durable
