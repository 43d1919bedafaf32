"""Costs meet what was measured, and grow as work does."""

import json

import pytest

from benchmarks.scale.costs import BYTES_A_RANK, RANK, RESULTS, measured


def test_steps_and_prompts_are_those_measured_times_the_layers() -> None:
    costs = measured()
    results = json.loads((RESULTS / "h200_steps.json").read_text())
    head = 2 * 128_256 * 4_096 / results["machine"]["bandwidth"]
    [step] = [one["step_ms"] / 1000 for one in results["decode"] if (one["sequences"], one["adapters"]) == (64, 64)]
    assert costs.step(64, 64 * RANK) == pytest.approx(4 * (step - head) + head)
    assert 20e-6 < costs.token < 40e-6  # 37,000 tokens of prompts a second


def test_more_sequences_and_more_rank_take_longer() -> None:
    step = measured().step
    times = [step(sequences, sequences * RANK) for sequences in range(1, 257)]
    assert times == sorted(times)
    assert step(64, RANK) < step(64, 8 * RANK) < step(64, 64 * RANK)


def test_loads_take_longer_from_further_away() -> None:
    byte = measured().byte
    assert byte["host"] < byte["disk"] < byte["afar"]
    assert byte["afar"] * BYTES_A_RANK * RANK / 4 == pytest.approx(6.1 / 64)  # 21 MB, of a quarter of the layers
