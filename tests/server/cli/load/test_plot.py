from pathlib import Path

import pytest

from peftserve.server.cli.load.measure import Measurement
from peftserve.server.cli.load.plot import can_plot, plot

pytest.importorskip("matplotlib")
GOOD = Measurement("a", 0.0, [0.5, 0.75], 1.0)
FAILED = Measurement("b", 0.0, error="no")


@pytest.mark.parametrize("slo", [None, 0.6])
@pytest.mark.parametrize("measured", [[GOOD, FAILED], [FAILED]], ids=["some", "none"])
def test_whatever_came_is_drawn(measured: list[Measurement], slo: float | None, tmp_path: Path) -> None:
    assert can_plot()
    plot(measured, slo, tmp_path / "run.svg")
    text = (tmp_path / "run.svg").read_text()
    assert text.startswith("<?xml")
