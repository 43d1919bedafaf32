"""Rooms import each other in one direction only, and the drawing of it is right."""

from pathlib import Path

import pytest

from docs.imports import across, arrows, cycles, imports_section

# Pairs that import each other today. To take one away is welcome; none may be added.
KNOWN = [
    {"adapters/adapterhub", "adapters/peft"},
    {"kernels/bypass/cpp", "kernels/bypass/torch"},
    {"server/engine/adapters", "server/engine/model"},
]

# Beginnings of rooms that import nothing from those that begin so.
NEVER = {
    "kernels": ("adapters", "server"),
    "adapters": ("kernels", "server"),
    "kernels/device": ("kernels/attention", "kernels/bypass", "kernels/ops", "kernels/sampling"),
    "kernels/attention": ("kernels/bypass", "kernels/ops", "kernels/sampling"),
    "kernels/bypass": ("kernels/attention", "kernels/ops", "kernels/sampling"),
    "server/wire": ("adapters/adapterhub", "adapters/peft", "kernels", "server/api", "server/cli", "server/engine"),
    "server/engine": ("server/api", "server/cli", "server/deploy"),
    "server/engine/scheduling": ("adapters", "kernels", "server/engine/adapters", "server/engine/model"),
    "server/api": ("kernels", "server/cli", "server/deploy", "server/engine"),
    "server/cli": ("kernels", "server/engine"),
    "server/deploy": ("kernels", "server/cli", "server/engine"),
    "server/demo": ("adapters", "kernels", "server/api", "server/cli", "server/engine"),
}


def begins(room: str, start: str) -> bool:
    return f"{room}/".startswith(f"{start}/")


def test_no_room_imports_against_the_direction() -> None:
    wrong = [
        (here, there)
        for here, there in sorted(arrows())
        for start, banned in NEVER.items()
        if begins(here, start) and any(begins(there, one) for one in banned)
    ]
    assert wrong == []


def test_rooms_import_each_other_only_where_they_did() -> None:
    found = cycles(across(arrows()))
    assert all(any(group <= known for known in KNOWN) for group in found), found


def test_rules_are_of_rooms_that_there_are() -> None:
    rooms = {room for arrow in arrows() for room in arrow}
    named = {
        *NEVER,
        *(room for banned in NEVER.values() for room in banned),
        *(room for known in KNOWN for room in known),
    }
    assert {name for name in named if not any(begins(room, name) for room in rooms)} == set()


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """Write three rooms, one of them with a room inside, and every way to write an import."""
    sources = {
        "kernels/a/__init__.py": "",
        "kernels/a/choice.py": "from .fast.run import run\nimport torch\n",
        "kernels/a/fast/__init__.py": "",
        "kernels/a/fast/run.py": "from ..choice import one\nfrom ...b import two\n",
        "kernels/b/__init__.py": "import os\n",
        "server/c/__init__.py": "def f():\n    import peftserve.kernels.b\n    from peftserve.kernels.a import one\n",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_arrows_are_read_from_the_sources(product: Path) -> None:
    assert arrows(product) == {
        ("kernels/a", "kernels/a/fast"),
        ("kernels/a/fast", "kernels/a"),
        ("kernels/a/fast", "kernels/b"),
        ("server/c", "kernels/a"),
        ("server/c", "kernels/b"),
    }
    assert cycles(arrows(product)) == [{"kernels/a", "kernels/a/fast"}]
    assert cycles(across(arrows(product))) == []


def test_cycles_go_by_way_of_others() -> None:
    assert cycles([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]) == [{"a", "b", "c"}]
    assert cycles([("a", "b"), ("c", "d"), ("d", "c")]) == [{"c", "d"}]


def test_all_rooms_are_drawn() -> None:
    section = imports_section()
    assert all(f"| `{here}` |" in section for here, _ in arrows())
    assert 'server_engine["server/engine"] --> kernels["kernels"]' in section
