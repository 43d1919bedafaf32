"""The bypasses in plain torch: what a CPU runs, and a reference on any other device.

A segment is a slice of the step and takes one product per group and one per site. Where it has so few rows that a call
costs more than its product, it is served together with all other such segments (see `bags.py`).

The step's plan is made once per change of the work list: decode, where the same sequences run step after step,
plans nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .bag_plan import plan_bags
from .bags import Bags, most_dots, most_sums
from .factors import Factors, Slice, view_factors
from .layout import BlobLayout, Group, Rows, Segment


class Attached(NamedTuple):
    """dots, sums: segments of at most so many rows are cheaper in bags, for the first and for the second product."""

    factors: Factors
    dots: int
    sums: int


class Plan(NamedTuple):
    """One group's work of the step."""

    slices: tuple[Slice, ...]
    bags: Bags | None


class TorchShrunk(NamedTuple):
    """h: in the order of `plan.slices`, each (rows, sum of ranks), in the arena's dtype. bag_h: as `Bags.shrink`."""

    plan: Plan
    h: list[torch.Tensor]
    bag_h: torch.Tensor | None


class TorchBypass:
    """`BypassBackend` in torch operators.

        for each segment s: y[s.start:s.end] += s.weight · (x[s.start:s.end] Aᵀ) Bᵀ

    x and y have the arena's dtype; every sum runs in fp32. In 16 bit, h is rounded to the arena's dtype between the
    two products (the CPU's 16-bit products take operands of one dtype, and a widened copy of the factors would double
    the bytes that bound this), and the delta of short segments is rounded before it is added.
    """

    takes_rows = False

    def __init__(self, arena: torch.Tensor, groups: Sequence[Group]) -> None:
        self._arena = arena
        self._groups = tuple(groups)
        self._slots: dict[int, dict[int, Attached]] = {}
        self._work: tuple[tuple[Segment, ...], tuple[Segment, ...]] | None = None
        self._plans: dict[int, Plan] = {}

    def attach(self, slot: int, base: int, layout: BlobLayout) -> None:
        self._slots[slot] = {}
        for index, entry in layout.items():
            if entry.rank:
                factors = view_factors(self._arena, base, self._groups[index], entry)
                self._slots[slot][index] = Attached(factors, most_dots(factors), most_sums(factors))
        self._work = None

    def detach(self, slot: int) -> None:
        del self._slots[slot]
        self._work = None

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment]) -> None:
        work = (tuple(tokens), tuple(logits))
        if work == self._work:
            return
        self._work = work
        long: dict[int, list[Slice]] = {}
        short: dict[int, list[Slice]] = {}
        for segment in work[0]:
            self._assign(segment, Rows.TOKENS, long, short)
        for segment in work[1]:
            self._assign(segment, Rows.LOGITS, long, short)
        bags = plan_bags(self._arena, self._groups, short)
        self._plans = {i: Plan(tuple(long.get(i, ())), bags.get(i)) for i in long.keys() | short.keys()}

    def shrink(self, group: int, x: torch.Tensor) -> TorchShrunk | None:
        plan = self._plans.get(group)
        if plan is None:
            return None
        h = [s.shrink(x) for s in plan.slices]
        return TorchShrunk(plan, h, plan.bags.shrink(x) if plan.bags else None)

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        shrunk = self.shrink(group, x)
        for position, y in enumerate(outputs):
            if shrunk is not None and y is not None:
                self.expand_(shrunk, position, y)

    def expand_(self, shrunk: TorchShrunk, position: int, y: torch.Tensor) -> None:
        for (factors, _, start, end, _), h in zip(shrunk.plan.slices, shrunk.h, strict=True):
            if factors.ranks[position]:
                y[start:end].addmm_(h[:, factors.columns[position]], factors.b[position])
        if shrunk.bag_h is not None and shrunk.plan.bags is not None:
            shrunk.plan.bags.expand_(shrunk.bag_h, position, y)

    def _assign(self, s: Segment, rows: Rows, long: dict[int, list[Slice]], short: dict[int, list[Slice]]) -> None:
        length = s.end - s.start
        if length == 0:
            return
        for index, (factors, dots, sums) in self._slots[s.slot].items():
            if self._groups[index].rows is rows:
                side = short if length <= sums else long
                side.setdefault(index, []).append(Slice(factors, s.weight, s.start, s.end, length <= dots))
