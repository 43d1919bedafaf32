import ast
from collections.abc import Iterator
from pathlib import Path

API = Path(__file__).resolve().parents[1] / "server" / "api"
# These know nothing of the modules beside the rooms.
BELOW = (
    "private",
    "engine",
    "tenancy",
    "http",
    "watching",
    "metrics",
    "text",
    "processes",
    "jobs",
    "sources",
    "assistant",
)
# Each imports from rooms before it only, so that there is no cycle.
ORDER = (*BELOW, "openai", "responses_api", "messages_api", "uploads", "routes")


def test_every_room_has_a_place_and_says_what_is_in_it() -> None:
    rooms = {path.parent.name: path for path in API.glob("*/__init__.py")}
    assert set(rooms) == set(ORDER)
    assert all(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in rooms.values())


def test_rooms_import_from_those_below_them() -> None:
    for place, room in enumerate(ORDER):
        imported = {name for path in (API / room).glob("*.py") for name in _imported(path)}
        known = imported & {*ORDER}
        assert known <= {*ORDER[:place]}, f"{room} imports {known - {*ORDER[:place]}}"
        if room in BELOW:
            assert imported == known, f"{room} imports {imported - known}"


def _imported(path: Path) -> Iterator[str]:
    """Yield what a module of a room imports from `server/api` outside of the room: rooms, and modules beside them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
