import sys
from pathlib import Path

import pytest

from benchmarks.kernels.plot import plot
from benchmarks.kernels.point import Outcome, Point


def points(phase: str) -> list[Point]:
    outcomes = {"ours": Outcome(2.0), "peer": Outcome(None, note="no such step")}
    return [Point(phase, n, a, "8", 1, floor=1.0, outcomes=outcomes) for n in (1, 4) for a in (1, 4) if a <= n]


def test_a_picture_for_each_phase(tmp_path: Path) -> None:
    written = plot([*points("decode"), *points("prefill")], tmp_path / "k")
    assert [path.name for path in written] == ["k_decode.png", "k_decode.svg", "k_prefill.png", "k_prefill.svg"]
    assert all(path.stat().st_size > 1000 for path in written)


def test_without_matplotlib_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot(points("decode"), tmp_path / "k") == []
