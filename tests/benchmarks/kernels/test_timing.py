import gc
import time
from typing import Any

import pytest
import torch

from benchmarks.kernels.contender import Run
from benchmarks.kernels.timing import captured, medians, seconds_on_cpu


def test_contenders_take_turns_and_short_ones_are_repeated() -> None:
    calls: list[str] = []

    def long() -> None:
        calls.append("long")
        time.sleep(0.006)

    found = medians({"short": lambda: calls.append("short"), "long": long}, "cpu", rounds=3)
    assert found["long"] == pytest.approx(0.006, rel=0.8)
    assert found["short"] < 1e-4
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert turns == ["short", "long"] * 4
    assert calls.count("short") > 100


def test_on_a_cpu_the_function_itself_is_timed_after_a_warm_up() -> None:
    calls: list[int] = []
    run = captured(lambda: calls.append(1), "cpu")
    assert len(calls) == 1
    assert seconds_on_cpu(run, 3) > 0
    assert len(calls) == 4


def test_on_a_gpu_what_is_replayed_holds_what_it_reads(simulated_cuda: Any) -> None:
    """As a backend's buffers, of which nobody else knows."""
    out = torch.zeros(2)

    def contender() -> Run:
        buffer = torch.ones(2)
        return captured(lambda: out.add_(buffer), "cuda")

    run = contender()
    gc.collect()
    out.zero_()
    for _ in range(3):
        run()
    assert out.tolist() == [3.0, 3.0]
