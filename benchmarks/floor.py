"""The least time that the bypasses of a step can take: bytes over bandwidth or FLOPs over peak, whichever is more.

    python benchmarks/floor.py [--device cpu|cuda] [--dtype bfloat16] [--shape llama-8b|smollm-135m]

Bytes are those that no implementation gets round: every active A and B once, each group's input once, and each site's
output read and written once, because the base's product is in memory before the bypass is added to it. What is between
the two products is not counted. Bandwidth and peak are measured in the same run, by a plain read and a square GEMM.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from peftserve.kernels.layout import Group

GB = 1e9


@dataclass(frozen=True)
class Shape:
    """layer: the groups of one layer, whose sites share an input each."""

    layers: int
    layer: tuple[Group, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.layer * self.layers


SHAPES = {
    "llama-8b": Shape(
        32,
        (
            Group(4096, (4096, 1024, 1024)),
            Group(4096, (4096,)),
            Group(4096, (14336, 14336)),
            Group(14336, (4096,)),
        ),
    ),
    "smollm-135m": Shape(
        30, (Group(576, (576, 192, 192)), Group(576, (576,)), Group(576, (1536, 1536)), Group(1536, (576,)))
    ),
}


class Share(NamedTuple):
    """One adapter's part of a step: its rank at every site, and its tokens."""

    rank: int
    tokens: int


class Cost(NamedTuple):
    """factors, activations: bytes."""

    factors: int
    activations: int
    flops: int

    @property
    def num_bytes(self) -> int:
        return self.factors + self.activations


class Machine(NamedTuple):
    """bandwidth: bytes per second. peak: FLOPs per second."""

    bandwidth: float
    peak: float

    def seconds(self, cost: Cost) -> float:
        return max(cost.num_bytes / self.bandwidth, cost.flops / self.peak)


def cost_of(groups: Sequence[Group], shares: Sequence[Share], dtype: torch.dtype) -> Cost:
    """Of one step. An adapter without tokens is not read."""
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
    return Cost(factors * dtype.itemsize, activations * dtype.itemsize, flops)


def measure(device: str, dtype: torch.dtype) -> Machine:
    """The best of several rounds: what the machine can do, not what it does on average."""
    data = torch.ones(1 << (26 if device == "cpu" else 29), dtype=torch.float32, device=device)
    size = 1024 if device == "cpu" else 8192
    left, right = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    read, multiply = _seconds(data.sum, device), _seconds(lambda: left @ right, device)
    return Machine(data.nbytes / read, 2 * size**3 / multiply)


def _seconds(run: Callable[[], object], device: str) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return min(once() for _ in range(10))


STEPS: dict[str, list[Share]] = {
    "1 adapter, 1 token": [Share(16, 1)],
    "1 adapter, 64 tokens": [Share(16, 64)],
    "8 adapters, 8 tokens": [Share(16, 1)] * 8,
    "64 adapters, 64 tokens": [Share(16, 1)] * 64,
    "64 adapters of ranks 8 to 64, 64 tokens": [Share(rank, 1) for rank in (8, 16, 32, 64)] * 16,
    "1 adapter, 8192 tokens": [Share(16, 8192)],
    "8 adapters, 8192 tokens": [Share(16, 1024)] * 8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    args = parser.parse_args()
    dtype, shape = getattr(torch, args.dtype), SHAPES[args.shape]
    machine = measure(args.device, dtype)
    print(f"{args.device}, {args.dtype}: {machine.bandwidth / GB:.0f} GB/s, {machine.peak / 1e12:.2f} TFLOP/s")
    print(f"{args.shape}: {'step':42}{'factors MB':>12}{'others MB':>11}{'GFLOP':>9}{'floor ms':>10}  bound by")
    for name, shares in STEPS.items():
        cost = cost_of(shape.groups, shares, dtype)
        bound = "bytes" if cost.num_bytes / machine.bandwidth >= cost.flops / machine.peak else "FLOPs"
        print(
            f"{'':{len(args.shape)}}  {name:42}{cost.factors / 1e6:12.1f}{cost.activations / 1e6:11.1f}"
            f"{cost.flops / GB:9.1f}{machine.seconds(cost) * 1e3:10.3f}  {bound}"
        )


if __name__ == "__main__":
    main()
