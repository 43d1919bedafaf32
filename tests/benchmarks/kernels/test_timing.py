import gc
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.kernels import timing
from benchmarks.kernels.contender import Run
from benchmarks.kernels.timing import captured, medians, seconds_on_cpu


def test_contenders_take_turns_and_short_ones_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    spent = {"short": 5e-5, "long": 6e-3}
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: sum(map(spent.__getitem__, calls))))
    found = medians({name: partial(calls.append, name) for name in spent}, "cpu", rounds=3)
    assert found == pytest.approx(spent)
    turns = [name for name, before in zip(calls, [None, *calls], strict=False) if name != before]
    assert turns == ["short", "long"] * 4
    assert calls.count("short") == 2 + 3 * 100
    assert calls.count("long") == 2 + 3 * 1


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
