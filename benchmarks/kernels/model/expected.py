"""The model's expectation of the kernels at each step that peers were measured at: the tables of docs/kernels.md.

    python -m benchmarks.kernels.model.expected

For Llama-3.1-8B's layers in bf16 on the card of the experiment. Designs are those that a server chooses without a table
of the device. In a graph: with the designs and grids of a captured graph of the step's kind, by the backend's own plan.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from peftserve.kernels.bypass.layout import Capacity, Group, StepKind
from peftserve.kernels.bypass.triton import model
from peftserve.kernels.bypass.triton.choice import Tuning
from peftserve.kernels.bypass.triton.designs import Design
from peftserve.kernels.bypass.triton.model import Device, Launch, Share
from peftserve.kernels.bypass.triton.plan import FEWEST_SHARING, BypassPlan, Launches, most_tiles_of_few
from peftserve.kernels.bypass.triton.slots import SlotTable
from peftserve.kernels.integers import cdiv

from ...tables import markdown
from .explained import layer
from .measured import device_of, read, shares

MAX_RANK = 64  # of the adapters that the server takes
STEP_HEADING = (
    *("step", "floor", "model", "in a graph", "experiment", "SGLang"),
    *("SGLang / model", "model / floor"),
)
BESIDE_HEADING = ("step", "behind, early", "second stream", "experiment's best", "SGLang's best")
ROOM = 1 << 40  # elements of h for which there is memory: all that are needed


class Expected(NamedTuple):
    """Microseconds of a layer. floor: bytes alone. alone: as the benchmark times it. graph: in a captured graph."""

    step: str
    floor: float
    alone: float
    graph: float
    experiment: float | None
    peer: float

    def row(self) -> list[str]:
        best = "" if self.experiment is None else f"{self.experiment:.1f}"
        figures = [f"{self.floor:.1f}", f"{self.alone:.1f}", f"{self.graph:.1f}", best, f"{self.peer:.1f}"]
        return [self.step, *figures, f"{self.peer / self.alone:.2f}", f"{self.alone / self.floor:.2f}"]


def expected(table: dict[str, Any]) -> list[Expected]:
    """Return the expectation of each measured step, decodes first."""
    device = device_of(table)
    tuning = Tuning(device, layer())
    plan = plan_of(tuning)
    found = []
    for step in (*table["steps"], *table["prefill"]):
        there = shares(step["tokens"], step["adapters"], step["ranks"])
        designs = designs_of(tuning, there)
        exact = [_launches(design, group, there, device) for design, group in zip(designs, layer(), strict=True)]
        measured = [step[name] for name in ("simple", "early", "walk") if name in step]
        name = f"{step['tokens']} x {step['adapters']}, {step['ranks']}"
        alone, graph = (_microseconds(pairs, device) for pairs in (exact, in_graph(plan, there, device)))
        found.append(Expected(name, step["floor"], alone, graph, min(measured, default=None), step["sglang"]))
    return found


def plan_of(tuning: Tuning) -> BypassPlan:
    """Return the backend's plan for a layer of the model, on a host without a GPU."""
    groups = list(layer())
    return BypassPlan(groups, SlotTable(torch.device("cpu"), groups, 1), tuning, ROOM, max_rank=MAX_RANK)


def designs_of(tuning: Tuning, there: Sequence[Share]) -> list[Design]:
    """Return the design of each of a layer's groups."""
    segments = [share.rows for share in there for _ in range(share.adapters)]
    rank = max(share.rank for share in there)
    return [tuning.design(sum(segments), segments, rank, group.in_features) for group in layer()]


def _launches(design: Design, group: Group, there: Sequence[Share], device: Device) -> tuple[Launch, Launch]:
    return model.shrink(design, group, there, device), model.expand(design, group, there, device)


def in_graph(plan: BypassPlan, there: Sequence[Share], device: Device) -> list[tuple[Launch, Launch]]:
    """Return each group's launches with the designs and grids of a captured graph for steps of this size and kind."""
    rows, adapters = (sum(counts) for counts in zip(*((s.rows * s.adapters, s.adapters) for s in there), strict=True))
    plan.update({group.rows: () for group in layer()}, Capacity(rows, kind_of(rows, adapters)))
    return [_with_idle(launches, group, there, device) for launches, group in zip(plan.launches, layer(), strict=True)]


def kind_of(rows: int, adapters: int) -> StepKind:
    """Return the kind of a step whose rows are spread evenly over its adapters."""
    if rows < FEWEST_SHARING * adapters:
        return StepKind.EACH
    tiles = adapters * cdiv(cdiv(rows, adapters), 16)
    return StepKind.FEW if tiles <= most_tiles_of_few(rows) else StepKind.TILES


def _with_idle(captured: Launches, group: Group, there: Sequence[Share], device: Device) -> tuple[Launch, Launch]:
    """Return the pair of launches, with the programs of the captured grids beyond the step's own as idle."""
    expand = captured.design.expand
    across = sum(cdiv(out, expand.columns * expand.walked) for out in group.out_features)
    programs = captured.units * captured.parts, captured.tiles * across
    first, second = (
        launch._replace(idle=max(0, most - launch.blocks))
        for launch, most in zip(_launches(captured.design, group, there, device), programs, strict=True)
    )
    return first, second


def _microseconds(pairs: Sequence[tuple[Launch, Launch]], device: Device) -> float:
    return sum(model.launch_seconds(launch, device, early=True) for pair in pairs for launch in pair) * 1e6


def beside_rows(table: dict[str, Any]) -> list[list[str]]:
    """Return rows of what is added to the base's products, with expand launched early or shrink on a second stream."""
    device = device_of(table)
    tuning = Tuning(device, layer())
    rows = []
    for step in table["beside"]:
        there = shares(step["tokens"], step["adapters"], step["ranks"])
        behind = second = 0.0
        for design, group in zip(designs_of(tuning, there), layer(), strict=True):
            late, early = _launches(design, group, there, device)
            behind += model.launch_seconds(late, device) + model.launch_seconds(early, device, early=True)
            second += model.seconds(replace(design, beside=True), group, there, device)
        ours = min(step["behind"], step["early"], step["beside"])
        peer = min(step["sglang_behind"], step["sglang_beside"])
        name = f"{step['tokens']} x {step['adapters']}, {step['ranks']}"
        rows.append([name, *(f"{figure:.1f}" for figure in (behind * 1e6, second * 1e6, ours, peer))])
    return rows


def main() -> int:
    table = read()
    found = expected(table)
    print("\n".join(markdown(STEP_HEADING, [each.row() for each in found])))
    decode = [each.peer / each.alone for each in found[: len(table["steps"])]]
    print(f"SGLang / model, geometric mean of {len(decode)} decodes: {statistics.geometric_mean(decode):.2f}\n")
    print("\n".join(markdown(BESIDE_HEADING, beside_rows(table))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
