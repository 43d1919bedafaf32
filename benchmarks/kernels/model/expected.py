"""What the model expects of the kernels at each step at which peers have been measured: the tables of docs/kernels.md.

    python -m benchmarks.kernels.expected

For Llama-3.1-8B's layers in bf16 on the card of the experiment. Designs are those that a server chooses without a table
of the device. In a graph: with the programs that a captured graph of the step's kind has, whatever the step needs.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from peftserve.kernels.bypass.layout import Group
from peftserve.kernels.bypass.triton import model
from peftserve.kernels.bypass.triton.choice import Tuning
from peftserve.kernels.bypass.triton.designs import Design
from peftserve.kernels.bypass.triton.model import Device, Launch, Share
from peftserve.kernels.integers import cdiv

from .explained import layer
from .measured import device_of, read, shares

MOST_PROGRAMS = 4096  # of a captured launch, for work that few steps have
USUAL_RANK, LARGE_RANK = 16, 64
SHARING = 3  # rows of an adapter from which on a graph is for tiles


class Expected(NamedTuple):
    """Microseconds of a layer. floor: bytes alone. alone: as the benchmark times it. graph: in its kind of graph."""

    step: str
    floor: float
    alone: float
    graph: float
    experiment: float | None
    peer: float

    def row(self) -> str:
        best = "" if self.experiment is None else f"{self.experiment:.1f}"
        figures = f"{self.floor:.1f} | {self.alone:.1f} | {self.graph:.1f} | {best} | {self.peer:.1f}"
        return f"| {self.step} | {figures} | {self.peer / self.alone:.2f} | {self.alone / self.floor:.2f} |"


def expected(table: dict[str, Any]) -> list[Expected]:
    device = device_of(table)
    tuning = Tuning(device, layer())
    found = []
    for step in (*table["steps"], *table["prefill"]):
        there = shares(step["tokens"], step["adapters"], step["ranks"])
        designs = designs_of(tuning, there)
        exact = [_launches(design, group, there, device) for design, group in zip(designs, layer(), strict=True)]
        captured = [
            in_graph(pair, design, group, there) for pair, design, group in zip(exact, designs, layer(), strict=True)
        ]
        measured = [step[name] for name in ("simple", "early", "walk") if name in step]
        name = f"{step['tokens']} x {step['adapters']}, {step['ranks']}"
        alone, graph = (_microseconds(pairs, device) for pairs in (exact, captured))
        found.append(Expected(name, step["floor"], alone, graph, min(measured, default=None), step["sglang"]))
    return found


def designs_of(tuning: Tuning, there: Sequence[Share]) -> list[Design]:
    """Of each of a layer's groups."""
    segments = [share.rows for share in there for _ in range(share.adapters)]
    rank = max(share.rank for share in there)
    return [tuning.design(sum(segments), segments, rank, group.in_features) for group in layer()]


def _launches(design: Design, group: Group, there: Sequence[Share], device: Device) -> tuple[Launch, Launch]:
    return model.shrink(design, group, there, device), model.expand(design, group, there, device)


def in_graph(
    pair: tuple[Launch, Launch], design: Design, group: Group, there: Sequence[Share]
) -> tuple[Launch, Launch]:
    """With programs for what all steps of that kind and size have; for more, as far as that is not many."""
    rows = sum(share.rows * share.adapters for share in there)
    usual, large = tiles_of_kind(rows, sum(share.adapters for share in there))
    each, most = (cdiv(len(group.out_features) * rank, design.shrink.ranks) for rank in (USUAL_RANK, LARGE_RANK))
    parts = cdiv(group.in_features, design.shrink.part)
    across = sum(cdiv(out, design.expand.columns * design.expand.walked) for out in group.out_features)
    units = max(usual * each, min(large * most, MOST_PROGRAMS // parts))
    tiles = max(usual, min(large, MOST_PROGRAMS // across))
    programs = units * parts, tiles * across
    first, second = (
        launch._replace(idle=max(0, most - launch.blocks)) for launch, most in zip(pair, programs, strict=True)
    )
    return first, second


def tiles_of_kind(rows: int, adapters: int) -> tuple[int, int]:
    """Tiles that all steps have of the kind that this one is of, and those that some have."""
    if rows < SHARING * adapters:
        return rows, rows
    few = rows // 16 + 4
    return (few, few) if adapters <= 4 else (cdiv(rows, 4), cdiv(rows, 2))


def _microseconds(pairs: Sequence[tuple[Launch, Launch]], device: Device) -> float:
    return sum(model.launch_seconds(launch, device, early=True) for pair in pairs for launch in pair) * 1e6


def beside_rows(table: dict[str, Any]) -> list[str]:
    """What is added to the base's products: expand launched early behind shrink, and shrink on a second stream."""
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
        rows.append(f"| {name} | {behind * 1e6:.1f} | {second * 1e6:.1f} | {ours:.1f} | {peer:.1f} |")
    return rows


def main() -> int:
    table = read()
    found = expected(table)
    print(
        "| step | floor | model | in a graph | experiment | SGLang | SGLang / model | model / floor |\n"
        + "| --- " * 8
        + "|"
    )
    for each in found:
        print(each.row())
    decode = [each.peer / each.alone for each in found[: len(table["steps"])]]
    print(f"SGLang / model, geometric mean of {len(decode)} decodes: {statistics.geometric_mean(decode):.2f}\n")
    print("| step | behind, early | second stream | experiment's best | SGLang's best |\n" + "| --- " * 5 + "|")
    print("\n".join(beside_rows(table)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
