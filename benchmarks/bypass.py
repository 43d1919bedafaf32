"""Times the bypasses on this machine's CPU: our backend beside a plain loop over the adapters, in one run.

    python benchmarks/bypass.py [--threads N] [--dtype bfloat16|float32] [--quick] [--out FILE.json]

The work is one step of the SmolLM2-135M shape: 30 layers of q/k/v, o, gate/up and down. `kernels/bench/cost.py`
says what the floor is. Both contestants take turns, and medians are reported, so a busy neighbour slows both alike.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from peftserve.kernels.bench.cost import Machine, Share, cost_of, measure_machine
from peftserve.kernels.bench.steps import SHAPES
from peftserve.kernels.bypass import make_bypass_backend
from peftserve.kernels.layout import GroupLayout, Segment

SHAPE = SHAPES["smollm-135m"]
LAYER, GROUPS = SHAPE.layer, SHAPE.groups
RANKS = (8, 16, 32, 64)
ALIGNMENT = 32


@dataclass(frozen=True)
class Scenario:
    """`tokens` rows, shared equally by `adapters` of ranks 8, 16, 32, 64, 8, ..."""

    phase: str
    tokens: int
    adapters: int

    @property
    def segments(self) -> list[Segment]:
        share = self.tokens // self.adapters
        return [Segment(slot, 1.0, slot * share, (slot + 1) * share) for slot in range(self.adapters)]

    @property
    def shares(self) -> list[Share]:
        return [Share(RANKS[s.slot % len(RANKS)], s.end - s.start) for s in self.segments]


DECODE = [
    Scenario("decode", tokens, adapters)
    for adapters in (1, 4, 8, 16)
    for tokens in (1, 4, 16, 64)
    if tokens >= adapters
]
PREFILL = [Scenario("prefill", tokens, adapters) for adapters in (1, 8, 16) for tokens in (256, 2048)]


@dataclass(frozen=True)
class Result:
    """Milliseconds of a whole step's bypasses. begin: planning, once per change of the batch."""

    scenario: Scenario
    megabytes: float
    floor: float
    ours: float
    begin: float
    loop: float


class Adapters:
    """Random adapters in an arena, attached to the backend, and the same factors as a plain loop reads them."""

    def __init__(self, count: int, dtype: torch.dtype) -> None:
        ranks = [RANKS[i % len(RANKS)] for i in range(count)]
        layouts = [_layout(rank) for rank in ranks]
        self.arena = torch.randn(sum(size for size, _ in layouts)).mul_(0.05).to(dtype)
        self.backend = make_bypass_backend(self.arena, GROUPS, max_slots=count)
        self.loops: list[dict[int, tuple[torch.Tensor, list[torch.Tensor]]]] = []
        base = 0
        for slot, (rank, (size, layout)) in enumerate(zip(ranks, layouts, strict=True)):
            self.backend.attach(slot, base, layout)
            self.loops.append({i: self._views(base, rank, i, entry) for i, entry in layout.items()})
            base += size

    def _views(self, base: int, rank: int, index: int, entry: GroupLayout) -> tuple[torch.Tensor, list[torch.Tensor]]:
        group = GROUPS[index]
        total = rank * len(group.out_features)
        a = self.arena[base + entry.a :][: total * group.in_features].view(total, -1)
        b = [self.arena[base + o :][: rank * n].view(rank, n) for o, n in zip(entry.b, group.out_features, strict=True)]
        return a, b


def _layout(rank: int) -> tuple[int, dict[int, GroupLayout]]:
    size, layout = 0, {}

    def take(elements: int) -> int:
        nonlocal size
        start, size = size, size + -(-elements // ALIGNMENT) * ALIGNMENT
        return start

    for index, group in enumerate(GROUPS):
        a = take(rank * len(group.out_features) * group.in_features)
        b = tuple(take(rank * n) for n in group.out_features)
        layout[index] = GroupLayout(a, (rank,) * len(b), b)
    return size, layout


Activations = tuple[list[torch.Tensor], list[list[torch.Tensor]]]


def activations(tokens: int, dtype: torch.dtype) -> Activations:
    """One layer's inputs and outputs, used by every layer: in a model too they are in the cache."""
    x = [torch.randn(tokens, g.in_features).to(dtype) for g in LAYER]
    return x, [[torch.zeros(tokens, n, dtype=dtype) for n in g.out_features] for g in LAYER]


def ours(adapters: Adapters, data: Activations) -> None:
    for index in range(len(GROUPS)):
        x, y = data[0][index % len(LAYER)], data[1][index % len(LAYER)]
        shrunk = adapters.backend.shrink(index, x)
        assert shrunk is not None
        for position, site in enumerate(y):
            adapters.backend.expand_(shrunk, position, site)


def loop(adapters: Adapters, segments: Sequence[Segment], data: Activations) -> None:
    """As most write it: at each linear, for each adapter, its two products on its rows."""
    for index, group in enumerate(GROUPS):
        x, y = data[0][index % len(LAYER)], data[1][index % len(LAYER)]
        for slot, _, start, end in segments:
            a, b = adapters.loops[slot][index]
            rank = b[0].shape[0]
            for position in range(len(group.out_features)):
                h = x[start:end] @ a[position * rank : (position + 1) * rank].t()
                y[position][start:end] += h @ b[position]


def milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def measure(scenario: Scenario, adapters: Adapters, machine: Machine, rounds: int) -> Result:
    data, segments = activations(scenario.tokens, adapters.arena.dtype), scenario.segments
    times: dict[str, list[float]] = {"begin": [], "ours": [], "loop": []}
    for _ in range(rounds + 1):
        adapters.backend.begin([], [])
        times["begin"].append(milliseconds(lambda: adapters.backend.begin(segments, [])))
        times["ours"].append(milliseconds(lambda: ours(adapters, data)))
        times["loop"].append(milliseconds(lambda: loop(adapters, segments, data)))
    medians = {name: round(statistics.median(values[1:]), 2) for name, values in times.items()}
    cost = cost_of(GROUPS, scenario.shares, adapters.arena.dtype)
    floor = machine.seconds(cost) * 1e3
    return Result(scenario, megabytes=round(cost.factors / 1e6, 1), floor=round(floor, 2), **medians)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--quick", action="store_true", help="one scenario of each phase, three rounds")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON, such as to benchmarks/results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scenarios = [Scenario("decode", 16, 8), Scenario("prefill", 2048, 16)] if args.quick else DECODE + PREFILL
    adapters = Adapters(max(s.adapters for s in scenarios), getattr(torch, args.dtype))
    speed = measure_machine("cpu", adapters.arena.dtype)
    print(
        f"{args.dtype}, {args.threads} threads, {speed.bandwidth / 1e9:.1f} GB/s, {speed.peak / 1e9:.0f} GFLOP/s; "
        "milliseconds of a step, medians"
    )
    print(
        f"{'phase':8}{'tokens':>7}{'adapters':>9}{'MB':>8}{'floor':>8}{'ours':>9}{'begin':>8}{'loop':>9}{'loop/ours':>11}"
    )
    results = []
    for scenario in scenarios:
        r = measure(scenario, adapters, speed, 3 if args.quick or scenario.tokens > 1000 else 9)
        results.append(r)
        print(
            f"{scenario.phase:8}{scenario.tokens:7}{scenario.adapters:9}{r.megabytes:8.1f}{r.floor:8.2f}{r.ours:9.2f}{r.begin:8.2f}"
            f"{r.loop:9.2f}{r.loop / r.ours:11.1f}",
            flush=True,
        )
    if args.out:
        machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__}
        setup = {
            "dtype": args.dtype,
            "threads": args.threads,
            "bytes_per_second": speed.bandwidth,
            "flops_per_second": speed.peak,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({**machine, **setup, "results": [asdict(r) for r in results]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
