import sys
from collections.abc import Sequence

import pytest

from peftserve.server.cli.load.measure import Measurement
from peftserve.server.cli.load.options import Load
from peftserve.server.cli.load.report import command_line, make_report, readable
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
