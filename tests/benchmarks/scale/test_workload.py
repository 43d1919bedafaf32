"""Traces are what they say: as many requests, at the rate, by the skew, and one for a seed."""

import numpy as np
import pytest

from benchmarks.scale.workload import TRACES, Traffic

TRAFFIC = Traffic(requests=40_000, adapters=500, rate=50.0, skew=1.0, seed=3)


@pytest.mark.parametrize("kind", TRACES)
def test_a_trace_is_what_was_asked_for(kind: str) -> None:
    trace = TRACES[kind](TRAFFIC)
    assert len(trace) == len(trace.adapter) == len(trace.prompt) == len(trace.output) == TRAFFIC.requests
    assert (np.diff(trace.arrival) >= 0).all()
    assert TRAFFIC.requests / (trace.arrival[-1] - trace.arrival[0]) == pytest.approx(TRAFFIC.rate, rel=0.1)
    assert trace.prompt.min() >= 1
    assert trace.output.min() >= 1
    assert len(trace.rank) == TRAFFIC.adapters
    share = (trace.adapter == 0).mean()  # 1 / H(500)
    assert share == pytest.approx(1 / np.sum(1 / np.arange(1, 501)), rel=0.15)


@pytest.mark.parametrize("kind", TRACES)
def test_one_seed_is_one_trace(kind: str) -> None:
    one, again = TRACES[kind](TRAFFIC), TRACES[kind](TRAFFIC)
    other = TRACES[kind](Traffic(40_000, 500, 50.0, 1.0, seed=4))
    assert (one.arrival == again.arrival).all()
    assert (one.adapter == again.adapter).all()
    assert (one.adapter != other.adapter).any()
    assert (one.rank == other.rank).all()


def test_of_sessions_an_adapters_requests_come_close_together() -> None:
    def again(kind: str) -> float:
        """Return how many requests follow one of the same adapter within a tenth of the mean."""
        trace = TRACES[kind](TRAFFIC)
        order = np.lexsort((trace.arrival, trace.adapter))
        adapter, arrival = trace.adapter[order], trace.arrival[order]
        same = adapter[1:] == adapter[:-1]
        return float((np.diff(arrival)[same] < 10).mean())

    assert again("azure") > again("steady")
