"""The names in a private room (`*/private/*_private.py`), each looked for in the library that is installed.

    python -m tests.private_rooms [--optional] server/engine/private/torch_private.py ...

prints what is missing, what it was for and what replaces it, and exits with 1 if anything is. Rooms are read and not
imported, so that all that an upgrade takes away is told at once.
"""

import ast
import builtins
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Table = Mapping[str, str]


def tables(room: str) -> tuple[Table, Table]:
    """Return `NAMES` and `OPTIONAL` of a room: from an expression to what it is for, and what would replace it."""
    known: dict[str, Any] = {}
    for node in _tree(room).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _is_plain(node.value, known):
            (target,) = node.targets if isinstance(node, ast.Assign) else (node.target,)
            known[ast.unparse(target)] = eval(ast.unparse(node.value), {}, known)
    return known["NAMES"], known.get("OPTIONAL", {})


def missing(table: Table) -> list[str]:
    """Return a line for each name that is not there: an expression that raises, or is False."""
    return [
        f"{name} is missing ({reason}). What it was for: {use}"
        for name, use in table.items()
        if (reason := _failure(name)) is not None
    ]


def unlisted(room: str) -> list[str]:
    """Return what the room imports from below the top of another package, and no expression of its tables has."""
    names, optional = tables(room)
    return [name for name in _imports(_tree(room)) if not any(name in key for key in (*names, *optional))]


def _failure(name: str) -> str | None:
    try:
        found = eval(name, {"inspect": inspect, **_packages(_dotted_names(name))})
    except Exception as error:  # of whatever the library does
        return f"{type(error).__name__}: {error}"
    return "not so" if found is False else None


def _packages(names: Iterable[str]) -> dict[str, Any]:
    """Return the packages that dotted names begin with, after the import of all modules on the way."""
    found: dict[str, Any] = {}
    for name in names:
        parts = name.split(".")
        if hasattr(builtins, parts[0]) or find_spec(parts[0]) is None:
            continue
        found[parts[0]] = importlib.import_module(parts[0])
        for end in range(2, len(parts) + 1):
            try:
                importlib.import_module(".".join(parts[:end]))
            except ModuleNotFoundError:
                break
    return found


def _dotted_names(expression: str) -> set[str]:
    return {dotted for node in ast.walk(ast.parse(expression)) if (dotted := _dotted(node)) is not None}


def _dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)) is not None:
        return f"{before}.{node.attr}"
    return None


def _imports(tree: ast.Module) -> Iterator[str]:
    """Yield the full names of what comes from a module of a module, or begins with an underscore."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in names if name.split(".")[0] not in sys.stdlib_module_names and _is_deep(name))


def _is_deep(name: str) -> bool:
    return name.count(".") > 1 or "._" in name


def _is_plain(value: ast.expr, known: Mapping[str, Any]) -> bool:
    """Return whether a value is made of constants, and of names that are."""
    allowed = (ast.Constant, ast.Dict, ast.Tuple, ast.BinOp, ast.JoinedStr, ast.FormattedValue, ast.operator, ast.Load)
    return all(
        isinstance(node, allowed) or (isinstance(node, ast.Name) and node.id in known) for node in ast.walk(value)
    )


def _tree(room: str) -> ast.Module:
    return ast.parse((ROOT / room).read_text(encoding="utf-8"))


def main(rooms: Iterable[str], optional: bool) -> int:
    """Print what rooms miss. optional: whether the names that only some versions have count, too."""
    lacking = False
    for room in rooms:
        names, others = tables(room)
        if lines := missing({**names, **others} if optional else names):
            print(room, *lines, sep="\n")
            lacking = True
            continue
        importlib.import_module("peftserve." + ".".join(Path(room).with_suffix("").parts))  # needs no more than that
        (library,) = _packages(_dotted_names(next(iter(names)))).values()
        print(f"{room}: all is there, in {Path(library.__file__).parents[1]}")
    return int(lacking)


if __name__ == "__main__":
    sys.exit(main([given for given in sys.argv[1:] if given != "--optional"], "--optional" in sys.argv))
