"""What a power cut leaves of plain files, and of what changes a state folder. `make faults` cuts at every call."""

import json
from pathlib import Path
from typing import cast

import pytest

from .injector import compiler
from .operations import OFFLINE, OPERATIONS
from .power import LOSSES
from .power_cuts import find, in_shadow
from .power_steps import Steps, Tree

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler for the library that gives faults")

CUTS_EACH = 1  # in the middle of an operation, beside those after it
OLD = [["write", "a", "old"], ["begin"]]
SYNC_ALL = ["sync all", "."]

KEPT: dict[str, tuple[Steps, Tree]] = {
    "a synced write": ([*OLD, ["write and sync", "a", "new"]], {"a": "new"}),
    "an unsynced write after a synced one": ([*OLD, ["write and sync", "a", "1"], ["write", "a", "2"]], {"a": "1"}),
    "an unsynced write": ([*OLD, ["write", "a", "new"]], {"a": "old"}),
    "a new file without its folder": ([["begin"], ["write and sync", "a", "new"]], {}),
    "a new file with its folder": ([["begin"], ["write and sync", "a", "new"], ["sync", "."]], {"a": "new"}),
    "a new folder without the one around it": ([["begin"], ["make", "b"], ["write", "b/a", ""], ["sync", "b"]], {}),
    "a new folder's names": ([["begin"], ["make", "b"], ["write", "b/a", ""], ["sync", "."]], {"b": None}),
    "an unsynced rename": ([*OLD, ["rename", "a", "b"]], {"a": "old"}),
    "a synced rename": ([*OLD, ["rename", "a", "b"], ["sync", "."]], {"b": "old"}),
    "an unsynced rename onto a file": (
        [["write", "b", "older"], *OLD, ["rename", "a", "b"]],
        {"a": "old", "b": "older"},
    ),
    "a rename between folders of which one is synced": (
        [["make", "b"], *OLD, ["rename", "a", "b/a"], ["sync", "."]],
        {"b": None},
    ),
    "an unsynced removal": ([*OLD, ["remove", "a"]], {"a": "old"}),
    "a synced removal": ([*OLD, ["remove", "a"], ["sync", "."]], {}),
    "a removal and another file of the name": (
        [*OLD, ["remove", "a"], ["write and sync", "a", "new"]],
        {"a": "old"},
    ),
    "all, when all is synced": (
        [*OLD, ["make", "b"], ["write", "b/a", "1"], SYNC_ALL],
        {"a": "old", "b": None, "b/a": "1"},
    ),
}


UNSYNCED: Steps = [["begin"], ["write", "a", "new"], ["sync", "."]]
AHEAD: Steps = [*OLD, ["rename", "a", "b"], ["write", "b", "new"]]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tree]]:
    """Return what each loss leaves of each case."""
    folder = tmp_path_factory.mktemp("power")
    cases = {**{what: steps for what, (steps, _) in KEPT.items()}, "unsynced": UNSYNCED, "ahead": AHEAD}
    found = in_shadow("tests.faults.power_steps", folder, [json.dumps(cases)])
    return {str(line["case"]): cast(list[Tree], line["left"]) for line in found}


@pytest.mark.parametrize("what", KEPT)
def test_a_cut_leaves(what: str, left: dict[str, list[Tree]]) -> None:
    assert left[what][0] == KEPT[what][1]


def test_what_was_never_synced_is_empty_garbage_or_as_written(left: dict[str, list[Tree]]) -> None:
    texts = [tree["a"] for tree in left["unsynced"]]
    assert texts[:3] == ["", "\xa5" * 3, "\0" * 3]
    assert texts[3] in ("", "new")


def test_names_can_be_ahead_of_contents(left: dict[str, list[Tree]]) -> None:
    assert left["ahead"][2] == {"b": "old"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_power_cut_takes_nothing_that_was_acknowledged(quick_folder: Path) -> None:
    names = [*OPERATIONS, *OFFLINE]
    found = find(quick_folder, names, CUTS_EACH)
    assert [line for line in found if "why" in line] == []
    assert [line["operation"] for line in found] == names
    assert all(int(str(line["points"])) > 2 * len(LOSSES) for line in found)
