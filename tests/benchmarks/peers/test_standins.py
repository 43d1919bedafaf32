import sys
from dataclasses import FrozenInstanceError, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest


class Color(Enum):
    RED = "red"


def test_modules_come_before_files_and_packages_find_theirs(peers: Any, tmp_path: Path) -> None:
    standins = peers.module("standins")
    (tmp_path / "fake" / "sub").mkdir(parents=True)
    (tmp_path / "fake" / "sub" / "__init__.py").write_text("raise RuntimeError('the whole server')")
    (tmp_path / "fake" / "sub" / "kernel.py").write_text("from fake.logger import log\nvalue = log(1)")
    standins.packages(tmp_path / "fake", "fake", "fake.sub")
    standins.stand_in("fake.logger", log=lambda number: number + 1)
    try:
        from fake.sub import kernel  # type: ignore[import-not-found]

        assert kernel.value == 2
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "fake"]:
            del sys.modules[name]


def test_models_are_made_of_json(peers: Any) -> None:
    base = peers.module("standins")._Model

    class Inner(base):  # type: ignore[misc, valid-type]
        color: Color = Color.RED
        sizes: dict[str, int] = field(default_factory=dict)

    class Outer(base):  # type: ignore[misc, valid-type]
        inner: list[Inner]
        limit: int | None = None

    made = Outer.model_validate({"inner": [{"color": "red", "sizes": {"a": 1}}, {}]})
    assert [row.color for row in made.inner] == [Color.RED, Color.RED]
    assert made.inner[0].model_dump() == {"color": Color.RED, "sizes": {"a": 1}}
    assert made.limit is None


def test_structs_are_frozen(peers: Any) -> None:
    class Point(peers.module("standins")._Struct, frozen=True, kw_only=True):  # type: ignore[misc]
        x: int

    with pytest.raises(FrozenInstanceError):
        Point(x=1).x = 2
