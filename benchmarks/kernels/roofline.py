"""The roofline: the least time that work can take, by its bytes over bandwidth or its FLOPs over peak.

Bytes of a step's bypasses are those that no implementation avoids: every active A and B once, each group's input once,
and each site's output read and written once, because the base's product is in memory before the bypass is added to it.
What lies between the two products is not counted. Bandwidth and peak are measured in the same run, by a plain read and
a square GEMM.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from peftserve.kernels.bypass.layout import Group

from .problem import Scenario


class AdapterShare(NamedTuple):
    """One adapter's share of a step: its rank at every site, and its tokens."""

    rank: int
    tokens: int


class LeastWork(NamedTuple):
    """Bytes and FLOPs that no implementation avoids. factors, activations: bytes."""

    factors: int
    activations: int
    flops: int

    @property
    def num_bytes(self) -> int:
        return self.factors + self.activations


class Roofline(NamedTuple):
    """The bandwidth that a machine reaches, in bytes per second, and its peak, in FLOPs per second."""

    bandwidth: float
    peak: float

    def seconds(self, work: LeastWork) -> float:
        return max(work.num_bytes / self.bandwidth, work.flops / self.peak)

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e9:.0f} GB/s, {self.peak / 1e12:.2f} TFLOP/s"


def shares_of(scenario: Scenario) -> list[AdapterShare]:
    return [AdapterShare(scenario.ranks[s.slot], s.end - s.start) for s in scenario.segments]


def least_work(groups: Sequence[Group], shares: Sequence[AdapterShare], dtype: torch.dtype) -> LeastWork:
    """Return the least work of one step's bypasses. An adapter without tokens is not read."""
    active = [share for share in shares if share.tokens]
    tokens = sum(share.tokens for share in active)
    factors = activations = flops = 0
    for group in groups:
        sites, width_out = len(group.out_features), sum(group.out_features)
        for rank, rows in active:
            elements = rank * (sites * group.in_features + width_out)
            factors += elements
            flops += 2 * rows * elements
        activations += tokens * (group.in_features + 2 * width_out)
    return LeastWork(factors * dtype.itemsize, activations * dtype.itemsize, flops)


def measure_roofline(device: str, dtype: torch.dtype) -> Roofline:
    """Measure by the best of several rounds: what the machine can do, not what it does on average."""
    data = torch.ones(1 << (26 if device == "cpu" else 29), dtype=torch.float32, device=device)
    size = 1024 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    read, multiply = _seconds(data.sum, device), _seconds(lambda: left @ right, device)
    return Roofline(data.nbytes / read, 2 * size**3 / multiply)


def _seconds(run: Callable[[], object], device: str) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return min(once() for _ in range(10))
