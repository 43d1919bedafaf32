import json
from pathlib import Path

import pytest

from benchmarks.kernels.ours import Ours
from benchmarks.kernels.point import Outcome, Point
from benchmarks.kernels.report import closing, figures, line, summary, write_json


def point(phase: str, ours: float | None, peer: float | None, note: str = "") -> Point:
    outcomes = {"ours": Outcome(ours, note="" if ours else "wrong: relative error 1"), "peer": Outcome(peer, note=note)}
    return Point(phase, 16, 4, "8-64", 3, floor=5.0, outcomes=outcomes)


def test_a_line_has_a_cell_for_every_heading() -> None:
    shown = line(point("decode", 10.0, 25.0))
    assert shown.split() == ["decode", "16", "4", "8-64", "5.0", "10.0", "2.0", "25.0", "(", "2.50x)", "peer", "2.50x"]
    assert figures(["ours", "peer"]).heading().index("peer") + len("peer") == shown.index("2.50x)") + len("2.50x)")


def test_what_was_not_timed_says_why_and_once() -> None:
    points = [point("decode", 10.0, None, "wrong: relative error 3e-01"), point("decode", None, None, "no such step")]
    assert "wrong" in line(points[0])
    assert "wrong" in line(points[1])
    assert closing([points[0], points[0]]).count("peer: wrong: relative error 3e-01") == 1


def test_means_are_geometric_and_by_phase() -> None:
    points = [point("decode", 10.0, 20.0), point("decode", 10.0, 80.0), point("prefill", 5.0, None)]
    assert summary(points)["decode"] == pytest.approx({"best peer / ours": 4.0, "ours / floor": 2.0})
    assert summary(points)["prefill"] == pytest.approx({"ours / floor": 1.0})


def test_json_has_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    write_json(path, {"command": "c"}, [Ours()], [point("decode", 10.0, 20.0)])
    report = json.loads(path.read_text())
    assert report["command"] == "c"
    assert report["points"][0]["outcomes"]["peer"]["us"] == 20.0
    assert report["contenders"] == {"ours": ""}
