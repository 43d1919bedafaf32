"""The texts of the product's sources, and the codes of its errors, read without importing anything."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GAP = "…"
TABLES = ("_ADAPTER_ANSWERS", "_FAULT_ANSWERS", "CODES")  # of errors' classes to what is answered


@cache
def trees() -> tuple[ast.Module, ...]:
    files = [path for folder in ("kernels", "adapters", "server") for path in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(ast.parse(path.read_text(encoding="utf-8")) for path in files)


@cache
def texts() -> tuple[str, ...]:
    """Return every string of the sources, with a gap for what is put in."""
    found = (_text(node) for tree in trees() for node in ast.walk(tree))
    return tuple(re.sub(r"%[sdr]|%\.\d[fg]", GAP, text) for text in found if text)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def says(message: str) -> bool:
    """Tell whether one string of the sources has all parts of a message, in order."""
    parts = [re.escape(part) for part in message.split(GAP)]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return any(pattern.search(text) for text in texts())


def fields_of(name: str) -> list[str]:
    """Return the annotated fields of the one class of this name, without those of its bases."""
    classes = (node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    [found] = [node for node in classes if node.name == name]
    fields = (node.target for node in found.body if isinstance(node, ast.AnnAssign))
    return [target.id for target in fields if isinstance(target, ast.Name)]


def error_codes() -> set[str]:
    """Return the codes of the API's errors: of those raised by name or place, and of the tables."""
    return {code for tree in trees() for node in ast.walk(tree) for code in _codes(node)}


def _codes(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        place = {"ApiError": None, "__init__": None, "bad_request": 2, "unavailable": 1}.get(name, -1)
        if place != -1:
            given = [word.value for word in node.keywords if word.arg == "code"]
            given += node.args[place : place + 1] if place is not None else []
            yield from (code for value in given if (code := _text(value)))
    if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") in TABLES:
        assert isinstance(node.value, ast.Dict)
        yield from (_text(value.elts[1] if isinstance(value, ast.Tuple) else value) for value in node.value.values)
