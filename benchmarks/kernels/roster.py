"""Who is measured: ours, a plain loop, and what the Python files of a folder bring with `contenders()`."""

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
    """Ours first."""
    folder = peers_folder(options)
    others: list[Contender] = [Loop(), *(load_peers(folder) if folder else [])]
    if options.only is not None:
        wanted = set(options.only.split(",")) - {"", Ours.name}
        if missing := wanted - {other.name for other in others}:
            raise UnknownContender(f"--only: no contender is named {', '.join(sorted(missing))}")
        others = [other for other in others if other.name in wanted]
    return [Ours(), *others]


def load_peers(folder: Path) -> list[Contender]:
    """Of all files in the order of their names; those without that function are helpers of the others."""
    return [contender for module in _modules(folder) for contender in getattr(module, "contenders", list)()]


def _modules(folder: Path) -> Iterator[ModuleType]:
    """The folder is a package of a name of our own: on sys.path a file named as what it measures would hide that."""
    package = ModuleType(f"peers_{abs(hash(folder.resolve())):x}")
    package.__path__ = [str(folder.resolve())]
    sys.modules[package.__name__] = package
    for path in sorted(folder.glob("*.py")):
        yield import_module(f"{package.__name__}.{path.stem}")
