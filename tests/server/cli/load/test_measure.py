import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.cli.load.measure import Measurement, attainment, lateness, percentiles, summarize


def test_percentiles_are_nearest_rank_in_milliseconds() -> None:
    found = percentiles(i / 1000 for i in range(1, 101))
    assert {name: round(value, 6) for name, value in found.items()} == {"mean": 50.5, "p50": 50, "p90": 90, "p99": 99}
    assert percentiles([]) == {}
    assert percentiles([0.5])["p99"] == 500


def test_summary_counts_by_model_and_leaves_failures_out() -> None:
    good = Measurement("a", 1.0, [1.5, 1.6, 1.8], 2.0, completion_tokens=4)
    uncounted = Measurement("b", 0.0, [1.0, 2.0], 2.0)
    failed = Measurement("b", 0.0, error="no")
    report = summarize([good, uncounted, failed], 2.0)
    assert (report["all"]["requests"], report["all"]["failed"]) == (3, 1)
    assert report["all"]["output_tokens"] == 6
    assert report["models"]["a"]["tokens_per_second"] == 2.0
    assert report["models"]["a"]["ttft_ms"]["p50"] == pytest.approx(500)
    assert report["models"]["a"]["itl_ms"]["p99"] == pytest.approx(200)
    assert report["models"]["b"]["failed"] == 1
    assert report["errors"] == ["no"]


@given(st.lists(st.floats(0, 1e4), min_size=1))
def test_percentiles_are_of_the_durations_and_in_order(durations: list[float]) -> None:
    found = percentiles(durations)
    assert {found["p50"], found["p90"], found["p99"]} <= {1000 * duration for duration in durations}
    assert 1000 * min(durations) <= found["p50"] <= found["p90"] <= found["p99"] <= 1000 * max(durations)
    below = sum(1000 * duration <= found["p90"] for duration in durations)
    assert below * 100 >= 90 * len(durations)


def test_attainment_is_of_all_requests_and_counts_from_their_start() -> None:
    requests = [Measurement("a", 1.0, [1.0 + ttft], 9.0) for ttft in (0.5, 2.0, 2.5)]
    requests.append(Measurement("b", 1.0, [1.1], error="broke off"))
    assert attainment(requests, 2.0) == 0.5
    report = summarize(requests, 2.0, slo_ttft=2.0)
    assert report["all"]["slo_attainment"] == 0.5
    assert report["models"]["b"]["slo_attainment"] == 0
    assert "slo_attainment" not in summarize(requests, 2.0)["all"]


def test_lateness_counts_what_was_sent_late() -> None:
    found = lateness([Measurement("a", 0.0, late=seconds) for seconds in (0.0, 0.05, 0.2, 1.0)])
    assert (found["late_requests"], found["max_ms"], found["late_ms"]["p50"]) == (2, 1000, 50)
