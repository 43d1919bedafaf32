import pytest

from benchmarks.swap.stall import Window, summarize
from peftserve.server.cli.load.stream import Measurement


def test_gaps_count_by_what_was_under_way() -> None:
    stream = Measurement("m", 0.0, chunks=[0.0, 1.0, 2.0, 4.0, 5.0, 11.0, 12.0, 15.0])
    quiet, load = Window("quiet", 0.0, 5.0), Window("load", 10.0, 20.0, busy=[(12.5, 13.0)])
    made = summarize([quiet, load], [stream])
    assert made["gaps"] == {"quiet": 4, "warm": 0, "load": 1, "upload": 0}
    assert made["load"]["p50"] == 3000
    assert made["over_quiet"]["load"]["p50"] == pytest.approx(3.0)
    assert made["events"] == {"warm": 0, "load": 1, "upload": 0}
    assert "upload" not in made["over_quiet"]
    assert made["over_warm"] == {}


def test_a_gap_over_the_edge_of_a_window_is_none_of_it() -> None:
    window = Window("quiet", 1.0, 2.0)
    assert not window.counts(0.9, 1.1)
    assert window.counts(1.0, 2.0)
    assert not window.counts(1.9, 2.1)
