import numpy as np
import pytest

from benchmarks.kernels.model import fit as fitting
from benchmarks.kernels.model.explained import ModelledPoint
from benchmarks.kernels.model.fit import OF_LAUNCHES, fit, least_squares, main, summary
from benchmarks.kernels.model.measured import read
from peftserve.kernels.bypass.triton.model import FITTED


def test_least_squares_finds_what_made_the_points() -> None:
    """One of them is off by a factor of 3, and counts less."""
    sizes = np.linspace(1, 50, 40)
    measured = 3e-6 + sizes * 0.2e-6
    measured[7] *= 3
    found = least_squares(lambda v: ((v[0] + sizes * v[1]) / measured).tolist(), np.array([1e-6, 1e-6]))
    assert found == pytest.approx([3e-6, 0.2e-6], rel=0.05)


def test_the_constants_that_ship_are_those_of_the_points(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two steps from them lead nowhere else."""
    monkeypatch.setattr(fitting, "ROUNDS", 2)
    table = read()
    found, _ = fit(table)
    for name in OF_LAUNCHES:
        assert getattr(found, name) == pytest.approx(getattr(FITTED, name), rel=0.02), name
    monkeypatch.setattr(fitting, "read", lambda: table)
    monkeypatch.setattr(fitting, "fit", lambda table: (found, None))
    monkeypatch.setattr("sys.argv", ["fit", "--all"])
    assert main() == 0
    said = capsys.readouterr().out
    assert "64 x 64, 16: walk" in said
    assert "spills registers" in said


def test_a_summary_counts_what_is_far_off() -> None:
    points = [ModelledPoint("a", 10.0, 11.0), ModelledPoint("b", 10.0, 5.0), ModelledPoint("c", 10.0, 10.0)]
    assert summary(points) == "3 points, 0.50 to 1.10, median 10.0% off, 1 by more than 35%"
