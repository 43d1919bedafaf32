"""The bypass beside the base's product, on a second stream, and behind it: what docs/kernels.md predicts, measured.

    python -m benchmarks.kernels.overlap [--tokens 16] [--adapters 16] [--rank 16] [--out FILE.jsonl]

A decode step's linears of Llama-3.1-8B in bf16 on a GPU: each group's base product, then its bypass, all in one CUDA
graph. Contestants take turns; the base alone is the zero that the others are measured from.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from peftserve.kernels.bypass.triton.backend import TritonBypass
from peftserve.kernels.bypass.triton.choice import choice_for
from peftserve.kernels.bypass.triton.designs import Design

from ..records import append
from .ours import attach_all
from .problem import SHAPES, BypassProblem, Scenario, make_problem
from .timing import captured, medians

LAYERS, ROUNDS = 4, 20
BASE = "base alone"


class Layers:
    """Each group's weights, (out, in), whose product fills the step's joined outputs."""

    def __init__(self, problem: BypassProblem) -> None:
        self.problem = problem
        self._weights = [
            torch.randn(sum(group.out_features), group.in_features, device="cuda").to(problem.arena.dtype)
            for group in problem.groups
        ]

    def base(self, index: int) -> None:
        place = index % self.problem.layer_groups
        torch.mm(self.problem.x[place], self._weights[index].t(), out=self.problem.joined[place])


def alone(layers: Layers, _: TritonBypass) -> None:
    for index, _x, _y in layers.problem.calls():
        layers.base(index)


def with_bypasses(layers: Layers, bypass: TritonBypass) -> None:
    """Run the base with its bypasses. `start` shrinks on a second stream where the design says so."""
    bypass.lead_in()
    for index, x, y in layers.problem.calls():
        bypass.start(index, x)
        layers.base(index)
        bypass.add_(index, x, y)


class Altered:
    """A choice of the designs that a server would take, but for some of their fields."""

    def __init__(self, problem: BypassProblem, **fields: bool) -> None:
        self._choice = choice_for(problem.arena, problem.groups)
        self._fields = fields

    def design(self, rows: int, segments: Sequence[int], rank: int, width: int) -> Design:
        return replace(self._choice.design(rows, segments, rank, width), **self._fields)

    def all_designs(self) -> list[Design]:
        return [replace(design, **self._fields) for design in self._choice.all_designs()]


def contestants(problem: BypassProblem) -> dict[str, Callable[[], None]]:
    layers = Layers(problem)

    def made(run: Callable[[Layers, TritonBypass], None], **fields: bool) -> Callable[[], None]:
        slots, rows = len(problem.adapters), problem.scenario.tokens
        backend = TritonBypass(
            problem.arena, problem.groups, max_slots=slots, max_rows=rows, choice=Altered(problem, **fields)
        )
        attach_all(backend, problem)
        return captured(lambda: run(layers, backend), "cuda")

    makers = {
        BASE: partial(made, alone),
        "two launches behind it": partial(made, with_bypasses, early=False),
        "the same, launched early (PDL)": partial(made, with_bypasses, early=True),
        "shrink beside it, expand behind": partial(made, with_bypasses, beside=True),
    }
    return ready(makers)


def ready(makers: Mapping[str, Callable[[], Callable[[], None]]]) -> dict[str, Callable[[], None]]:
    """Return the contestants that can be made, and print why others cannot: the rest are still to be measured."""
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except Exception as failed:
            print(f"  without {name}: {type(failed).__name__}: {(str(failed).splitlines() or [''])[0]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("tokens", "adapters", "rank"):
        parser.add_argument(f"--{name}", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    scenario = Scenario("decode", args.tokens, (args.rank,) * args.adapters)
    shape = SHAPES["llama-8b"]
    problem = make_problem(scenario, shape, layers=LAYERS, dtype=torch.bfloat16, device="cuda", join=True)
    times = {name: s / LAYERS * 1e6 for name, s in medians(contestants(problem), "cuda", ROUNDS).items()}
    zero = times.get(BASE, float("nan"))
    device = torch.cuda.get_device_name()
    print(f"{device}: {args.tokens} tokens, {args.adapters} adapters of rank {args.rank}; microseconds of a layer")
    for name, us in times.items():
        print(f"  {name:36}{us:9.2f}{us - zero:+9.2f}")
    about = {name: value for name, value in vars(args).items() if name != "out"}
    append(args.out, part="kernels", kind="overlap", device=device, **about, us=times)
    return int(BASE not in times or len(times) < 2)


if __name__ == "__main__":
    sys.exit(main())
