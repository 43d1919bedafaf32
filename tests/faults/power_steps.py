"""Steps on plain files, and what a power cut leaves of them: `python -m tests.faults.power_steps FOLDER CASES`."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from .crashes import DISK
from .power import LOSSES, Shadow

Steps = list[list[str]]
"""Each a key of STEPS, a path, and what it takes more."""
Tree = dict[str, str | None]
"""Paths to texts; None for a folder."""


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _write_and_sync(path: Path, text: str) -> None:
    with path.open("wb") as file:  # a descriptor that cannot be read
        file.write(text.encode())
        file.flush()
        os.fdatasync(file.fileno())


STEPS: dict[str, Callable[..., object]] = {
    "write": lambda path, text: path.write_text(str(text)),
    "write and sync": _write_and_sync,
    "sync": _sync,
    "sync all": lambda path: os.sync(),
    "make": lambda path: path.mkdir(),
    "rename": lambda path, new: path.rename(path.parent / new),
    "remove": lambda path: path.unlink(),
}


def run(folder: Path, steps: Steps) -> list[Tree]:
    """Do steps on an empty folder, and return what each loss leaves of it. All is durable that is before "begin"."""
    root, left = folder / DISK, folder / "left"
    shadow = Shadow.of_environment(root)
    shutil.rmtree(root)
    root.mkdir()
    for what, *arguments in steps:
        if what == "begin":
            shadow.begin()
        else:
            STEPS[what](root / arguments[0], *arguments[1:])
    found = []
    for loss in LOSSES:
        shadow.cut(loss, 0, left)
        found.append(tree(left))
    return found


def tree(folder: Path) -> Tree:
    """Return all that lies in a folder."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_text("latin-1")
        for path in folder.rglob("*")
    }


def main(folder: str, cases: str) -> None:
    """cases: a JSON object of lists of steps."""
    for name, steps in json.loads(cases).items():
        print(json.dumps({"case": name, "left": run(Path(folder), steps)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
