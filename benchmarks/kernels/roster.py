"""The contenders that are measured: ours, a plain loop, and those of Python files in a folder, from `contenders()`."""

import argparse
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from .contender import Contender
from .loop import Loop
from .options import UsageError, peers_folder
from .ours import Ours


class UnknownContender(UsageError):
    """`--only` names what is not there."""


def contenders_of(options: argparse.Namespace) -> list[Contender]:
    """Return the contenders that the options ask for, ours first. Raises UnknownContender."""
    folder = peers_folder(options)
    others: list[Contender] = [Loop(), *(load_peers(folder) if folder else [])]
    if options.only is not None:
        wanted = set(options.only.split(",")) - {"", Ours.name}
        if missing := wanted - {other.name for other in others}:
            raise UnknownContender(f"--only: no contender is named {', '.join(sorted(missing))}")
        others = [other for other in others if other.name in wanted]
    return [Ours(), *others]


def load_peers(folder: Path) -> list[Contender]:
    """Load the contenders of all files of a folder, by file name.

    Files without `contenders` are helpers of the others.
    """
    return [contender for module in _modules(folder) for contender in getattr(module, "contenders", list)()]


def _modules(folder: Path) -> Iterator[ModuleType]:
    """Import the files of a folder as modules of a package with a name of our own.

    With the folder on sys.path, a file named like the package that it measures would hide that package.
    """
    package = ModuleType(f"peers_{abs(hash(folder.resolve())):x}")
    package.__path__ = [str(folder.resolve())]
    sys.modules[package.__name__] = package
    for path in sorted(folder.glob("*.py")):
        yield import_module(f"{package.__name__}.{path.stem}")
