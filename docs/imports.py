"""The imports between rooms of the product, read from the sources and drawn for `docs/design.md`.

A room is a folder with code. A module of `kernels/`, `adapters/` or `server/` itself is in the room of that name.
"""

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "adapters", "server")
Arrow = tuple[str, str]  # who imports, what is imported


def arrows(root: Path = ROOT) -> set[Arrow]:
    """Return which room imports which other one, inside functions and for type checkers too."""
    sources = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    rooms = {path.parent.relative_to(root).as_posix() for path in sources}
    found: set[Arrow] = set()
    for path in sources:
        here = path.parent.relative_to(root).as_posix()
        there = (_room_of(name, rooms) for name in _imported(path, root))
        found |= {(here, room) for room in there if room is not None and room != here}
    return found


def _imported(path: Path, root: Path) -> Iterator[str]:
    """Yield the path, below the root, of each module or name of ours that a module imports."""
    package = ("peftserve", *path.parent.relative_to(root).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*module, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from ("/".join(name[1:]) for name in names if name[0] == "peftserve")


def _room_of(name: str, rooms: Set[str]) -> str | None:
    """Return the innermost room that holds an imported module or name."""
    parts = name.split("/")
    paths = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((path for path in paths if path in rooms), None)


def across(found: Iterable[Arrow]) -> set[Arrow]:
    """Return the arrows without those from a room to one inside it, which it opens and chooses from."""
    return {(here, there) for here, there in found if not there.startswith(f"{here}/")}


def cycles(found: Iterable[Arrow]) -> list[frozenset[str]]:
    """Return the groups of rooms each of which imports every other, if only by way of others."""
    graph: dict[str, set[str]] = {}
    for here, there in found:
        graph.setdefault(here, set()).add(there)
        graph.setdefault(there, set())
    reached = {room: _reachable(graph, room) for room in graph}
    groups = {frozenset(other for other in reached[room] if room in reached[other]) for room in graph}
    return sorted((group for group in groups if len(group) > 1), key=sorted)


def _reachable(graph: Mapping[str, Set[str]], start: str) -> set[str]:
    seen, waiting = {start}, [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def imports_section() -> str:
    """Return the picture of the large rooms, the table of all, and the cycles, as Markdown."""
    found = arrows()
    return "\n\n".join([_picture(found), _table(found), _said_of_cycles(found)])


def _picture(found: Iterable[Arrow]) -> str:
    large = sorted({(_large(here), _large(there)) for here, there in found})
    lines = [f'    {_node(here)}["{here}"] --> {_node(there)}["{there}"]' for here, there in large if here != there]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def _large(room: str) -> str:
    """Return the top folder of a room; of the server's, the folder below it."""
    parts = room.split("/")
    return "/".join(parts[: 2 if parts[0] == "server" else 1])


def _node(room: str) -> str:
    return room.replace("/", "_")


def _table(found: Collection[Arrow]) -> str:
    rooms = sorted({room for arrow in found for room in arrow})
    rows = [f"| `{room}` | {_targets(room, found)} |" for room in rooms]
    return "\n".join(["| room | imports |", "| --- | --- |", *rows])


def _targets(room: str, found: Iterable[Arrow]) -> str:
    return ", ".join(f"`{there}`" for here, there in sorted(found) if here == room) or "nothing"


def _said_of_cycles(found: Iterable[Arrow]) -> str:
    listed = "; ".join(" and ".join(f"`{room}`" for room in sorted(group)) for group in cycles(across(found)))
    return f"Rooms that import each other, beside a room and those inside it: {listed or 'none'}."
