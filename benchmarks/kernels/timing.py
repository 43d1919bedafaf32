"""Medians of contenders that take turns, so that a busy neighbour or a hot chip slows all of them alike.

On a CUDA device each contender is one graph, as in a server that decodes with graphs: what the host does to launch is
not in the figures.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from peftserve.kernels.device.cuda_graphs import capture

from .contender import Run

WARM_UPS = 3
SPANS = {"cpu": 5e-3, "cuda": 2e-3}
"""Seconds that one measurement takes at least: shorter calls are repeated, for a resolution far under a microsecond."""

Clock = Callable[[Run, int], float]  # seconds of so many calls


def captured(run: Run, device: str) -> Run:
    """Return what is timed: on a CPU the function itself, on a GPU the replay of its graph."""
    if device == "cpu":
        run()
        return run
    return capture(run, torch.cuda.Stream(), warm_ups=WARM_UPS)


def medians(runs: Mapping[str, Run], device: str, rounds: int) -> dict[str, float]:
    """Return the median seconds of one call of each."""
    clock: Clock = seconds_on_cpu if device == "cpu" else seconds_on_cuda
    repeats = {name: _repeats(partial(clock, run), SPANS[device]) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(clock(run, repeats[name]) / repeats[name])
    return {name: statistics.median(values) for name, values in times.items()}


def _repeats(clock: Callable[[int], float], span: float) -> int:
    """Return how many calls take `span` seconds. The first call warms up, the second is the estimate."""
    clock(1)
    return max(1, round(span / max(clock(1), 1e-7)))


def seconds_on_cpu(run: Run, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def seconds_on_cuda(run: Run, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3
