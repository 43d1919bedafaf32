import pytest

from peftserve.server.cli.measure import Measurement, percentiles, summarize


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
