"""Private names of other libraries that a module uses, found by reading its source.

Private is what a library may change without saying so: a name that begins with one underscore, or one below `INTERNAL`.
An attribute of an object whose library is not known counts as somebody else's if nothing of ours has that name.
"""

import ast
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple

INTERNAL = (
    "torch.fx.experimental",
    "torch.ops.mkldnn",
    "triton.backends",
    "triton.compiler",
    "triton.runtime",
    "triton.testing.get_dram_gbps",
)
"""What is as private as a name with an underscore: documented as such, or not documented at all."""

PUBLIC = frozenset({"_asdict", "_field_defaults", "_fields", "_make", "_replace"})
"""What `NamedTuple` documents in spite of the underscore."""

BY_NAME = frozenset({"delattr", "getattr", "hasattr", "setattr"})


class Use(NamedTuple):
    """A private name, and the line that uses it."""

    line: int
    name: str


def private_uses(source: str, ours: Set[str]) -> list[Use]:
    """Return the uses of private names in a module. ours: what `own_names` found in all sources of the project."""
    tree = ast.parse(source)
    aliases = dict(_aliases(tree))
    found = {Use(line, name) for line, name in _imported(tree) if is_private(name)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            found |= {Use(node.lineno, name) for name in _of_attribute(node, aliases, ours)}
        elif isinstance(node, ast.Call):
            found |= {Use(node.lineno, name) for name in _of_call(node, ours)}
    return sorted(found)


def own_names(source: str) -> Iterator[str]:
    """Yield the names that a module defines: functions, classes, variables, and attributes of `self` or `cls`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            yield node.attr


def is_private(name: str) -> bool:
    """Whether a full name of another library, such as `torch._inductor.config`, is private."""
    return any(map(_has_underscore, name.split("."))) or any(f"{name}.".startswith(f"{part}.") for part in INTERNAL)


def unresolved(names: Iterable[str]) -> list[str]:
    """Return the full names that the installed libraries do not have."""
    return [name for name in names if not _resolves(name)]


def _has_underscore(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in PUBLIC


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_foreign(module: str) -> bool:
    root = module.partition(".")[0]
    return root != "peftserve" and root not in sys.stdlib_module_names


def _imported(tree: ast.Module) -> Iterator[Use]:
    """Yield the names that a module imports from other libraries."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Use(node.lineno, alias.name) for alias in node.names if _is_foreign(alias.name))
        elif isinstance(node, ast.ImportFrom) and not node.level and _is_foreign(node.module or ""):
            yield from (Use(node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield what a module calls the names that it imports, but for our own, and their full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (root, root)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _of_attribute(node: ast.Attribute, aliases: Mapping[str, str], ours: Set[str]) -> Iterator[str]:
    """Yield the private names in a chain of attributes, of which `node` is the last."""
    chain: list[str] = []
    value: ast.expr = node
    while isinstance(value, ast.Attribute):
        chain.insert(0, value.attr)
        value = value.value
    if isinstance(value, ast.Name) and value.id in aliases:
        full = ".".join([aliases[value.id], *chain])
        known = not _is_foreign(full) or is_private(aliases[value.id])  # by its import, or of Python itself: `os._exit`
        if is_private(full) and not known:
            yield full
    else:
        yield from (f"*.{name}" for name in chain if _has_underscore(name) and name not in ours)


def _of_call(node: ast.Call, ours: Set[str]) -> Iterator[str]:
    """Yield the private name that `getattr` and the like are given as a string."""
    if isinstance(node.func, ast.Name) and node.func.id in BY_NAME and len(node.args) > 1:
        name = node.args[1]
        text = name.value if isinstance(name, ast.Constant) else None
        if isinstance(text, str) and _has_underscore(text) and text not in ours:
            yield f"*.{text}"


def _resolves(name: str) -> bool:
    """Import as much of the name as is a module, and look the rest up as attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False
