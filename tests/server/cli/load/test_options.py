import argparse
import math
from pathlib import Path
from typing import Any

import pytest

from peftserve.server.cli.errors import CommandError
from peftserve.server.cli.load import options
from peftserve.server.cli.load.options import Load, check, expand_names, parse_renames


def load(*flags: str) -> Load:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return options.load(parser.parse_args(flags))


def test_the_closed_loop_is_the_default() -> None:
    made = load("--models", "a,b")
    assert (len(made.trace), made.concurrency, made.slo_ttft) == (64, 16, None)
    assert [request.model for request in made.trace[:4]] == ["a", "b", "a", "b"]
    assert {(r.arrival, r.prompt_tokens, r.output_tokens) for r in made.trace} == {(None, 128, 64)}


def test_presets_and_what_a_flag_changes_of_them() -> None:
    s_lora = load("--workload", "s-lora", "--models", "ad{0..99}")
    assert (len(s_lora.trace), s_lora.slo_ttft, s_lora.settings["alpha"]) == (600, 6.0, 1.0)
    assert all(8 <= r.prompt_tokens < 512 and 8 <= r.output_tokens < 512 for r in s_lora.trace)
    assert len(load("--workload", "s-lora", "--models", "a", "--rate", "0.5").trace) == 150
    assert len(load("--workload", "s-lora", "--models", "a", "--num-requests", "9").trace) == 9
    punica = load("--workload", "punica", "--models", "ad{0..9}", "--popularity", "skewed")
    assert (len(punica.trace), punica.concurrency, punica.settings["lengths"]) == (1024, 32, "punica")
    assert {r.output_tokens for r in load("--workload", "punica", "--models", "a", "--output-tokens", "5").trace} == {5}
    assert load("--workload", "punica", "--models", "a", "--rate", "3").trace[1].arrival is not None


def test_a_saved_trace_is_the_same_again(tmp_path: Path) -> None:
    file = str(tmp_path / "trace.jsonl")
    saved = load("--models", "a,b", "--rate", "3", "--save-trace", file)
    assert load("--trace", file).trace == saved.trace


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--models: no model is named"),
        ("--models ,", "--models: no model is named"),
        ("--models a --rate 2 --concurrency 3", "--rate and --concurrency are two ways"),
        ("--models a --rate 2 --duration 3 --num-requests 2", "--duration and --num-requests are two ways"),
        ("--models a --lengths punica --prompt-tokens 3", "--lengths and --prompt-tokens are two ways"),
        ("--models a --cv 2", "--cv: only an open loop"),
        ("--models a --duration 2", "--duration: only an open loop"),
        ("--models a --rate 0.1 --duration 2", "--duration: no request arrives in it"),
        ("--models a --alpha 2", "--alpha: only the popularities"),
        ("--models a --rate 0", "--rate: 0.0 is not more than 0"),
        ("--models a --prompt-tokens 0", "--prompt-tokens: 0 is not 1 or more"),
        ("--trace nowhere --seed 2", "--seed: a trace from a file"),
        ("--trace nowhere", "--trace: nowhere: .*No such file"),
    ],
)
def test_mistakes(flags: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        load(*flags.split())


@pytest.mark.parametrize("cv", ["0", "0.001", "1000"])
def test_arrivals_are_numbers_at_the_ends_of_what_their_gaps_may_be(cv: str) -> None:
    arrivals = [request.arrival for request in load("--models", "a", "--rate", "3", "--cv", cv).trace]
    assert all(arrival is not None and math.isfinite(arrival) for arrival in arrivals)
    assert arrivals == sorted(arrivals, key=float)


def test_clients_are_for_a_trace_without_arrivals(tmp_path: Path) -> None:
    for name, flags in (("open", ["--rate", "2"]), ("closed", [])):
        load("--models", "a", "--num-requests", "2", *flags, "--save-trace", str(tmp_path / name))
    assert load("--trace", str(tmp_path / "closed"), "--concurrency", "3").settings["concurrency"] == 3
    with pytest.raises(CommandError, match="--concurrency: the trace has arrivals"):
        load("--trace", str(tmp_path / "open"), "--concurrency", "3")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_requests", 0, "--num-requests: 0 is not 1 or more"),
        ("rate", -1.0, "--rate: -1.0 is not more than 0"),
        ("slo_ttft", math.nan, "--slo-ttft: nan is not more than 0"),
        ("cv", math.inf, "--cv: inf is not 0, or from 0.001 to 1000"),
        ("cv", 1e-200, "--cv: 1e-200 is not 0, or from 0.001 to 1000"),
        ("cv", 1e200, "--cv: 1e.200 is not 0, or from 0.001 to 1000"),
        ("seed", -1, "--seed: -1 is not 0 or more"),
    ],
)
def test_a_mistake_names_its_flag(name: str, value: Any, message: str) -> None:
    check({})
    with pytest.raises(CommandError, match=message):
        check({name: value})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b", ["a", "b"]),
        ("a,,b,", ["a", "b"]),
        ("ad{0..3}", ["ad0", "ad1", "ad2", "ad3"]),
        ("x{08..10}y,z", ["x08y", "x09y", "x10y", "z"]),
        ("{0..1}-{1..2}", ["0-1", "0-2", "1-1", "1-2"]),
        ("a{3..2}", []),
        ("a{b}", ["a{b}"]),
        ("", []),
    ],
)
def test_expand_names(text: str, expected: list[str]) -> None:
    assert expand_names(text) == expected


def test_renames() -> None:
    assert parse_renames(["a{0..1}=/b/{5..6}", "c=d"]) == {"a0": "/b/5", "a1": "/b/6", "c": "d"}


@pytest.mark.parametrize("pair", ["a", "a{0..1}=b", "=b", "a="])
def test_what_renames_nothing(pair: str) -> None:
    with pytest.raises(CommandError, match="is not OLD=NEW"):
        parse_renames([pair])
