import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.cli.load.options import Load
from peftserve.server.cli.load.report import (
    attainment,
    can_plot,
    command_line,
    lateness,
    make_report,
    percentiles,
    plot,
    readable,
    summarize,
)
from peftserve.server.cli.load.stream import Measurement
from peftserve.server.cli.load.trace import Request


def load_of(measured: Sequence[Measurement], arrival: float | None) -> Load:
    return Load([Request(arrival, m.model, 3, 2, 0) for m in measured], 4, 1.0, {"preset": None})


def good(model: str, late: float = 0.0) -> Measurement:
    return Measurement(model, 0.0, [0.5, 0.75], 1.0, 2, 3, late)


def test_a_row_for_all_and_for_each_model() -> None:
    measured = [good("a"), good("b")]
    report = make_report(load_of(measured, None), measured, 2.0)
    assert "generator" not in report
    lines = readable(report).splitlines()
    assert lines[0] == "2 requests in 2.00 s: 1.00 req/s"
    assert [line.split()[0] for line in lines[1:]] == ["model", "all", "a", "b"]
    assert "100%" in lines[2]
    assert "500.0/500.0/500.0/500.0" in lines[2]


def test_it_says_when_the_generator_could_not_keep_up() -> None:
    measured = [good("a"), good("a", late=0.5)]
    text = readable(make_report(load_of(measured, 0.0), measured, 2.0))
    assert "could not keep up: 1 of 2 requests were sent more than 100 ms after their arrival, the latest 500" in text
    assert "could not" not in readable(make_report(load_of(measured[:1], 0.0), measured[:1], 2.0))


def test_errors_and_missing_tokens_are_told() -> None:
    failed = [good("a"), Measurement("a", 0.0, error="it broke")]
    assert "error: it broke" in readable(make_report(load_of(failed, None), failed, 2.0))
    short = [Measurement("a", 0.0, [0.5], 1.0, 1)]
    assert "1 tokens came, 2 were asked for" in readable(make_report(load_of(short, None), short, 2.0))
    longer = [Measurement("a", 0.0, [0.5], 1.0, 2, 9)]
    assert "the server read 9 tokens of prompts, not 3" in readable(make_report(load_of(longer, None), longer, 2.0))


def test_of_very_many_models_the_popular_are_shown() -> None:
    measured = [good(f"m{index:02}") for index in range(40)] + [good("m39")]
    text = readable(make_report(load_of(measured, None), measured, 2.0))
    assert "m39" in text
    assert "and 8 models with fewer requests" in text


def test_the_command_hides_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "bench", "--api-key", "secret", "--api-key=secret", "--seed", "1 2"])
    assert command_line(["peftserve"]) == "peftserve bench --api-key ... --api-key=... --seed '1 2'"


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


@pytest.mark.parametrize("slo", [None, 0.6])
@pytest.mark.parametrize(
    "measured",
    [[good("a"), Measurement("b", 0.0, error="no")], [Measurement("b", 0.0, error="no")]],
    ids=["some", "none"],
)
def test_whatever_came_is_drawn(measured: list[Measurement], slo: float | None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert can_plot()
    plot(measured, slo, tmp_path / "run.svg")
    text = (tmp_path / "run.svg").read_text()
    assert text.startswith("<?xml")
