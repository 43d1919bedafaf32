"""The bypasses in plain torch: what a CPU runs, and a reference on any other device.

A segment is a slice of the step and takes one product per group and one per site. How these are made is decided for
each segment by what the ways cost on this machine: on its own (`slices.py`), between buffers that all short segments
share (`packed.py`), or all of them in one call (`bags.py`).

The step's plan is made once per change of the work list: decode, where the same sequences run step after step,
plans nothing.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from ..layout import BlobLayout, Capacity, Group, GroupLayout, Rows, Segment, StepKind
from .bag_plan import plan_bags
from .calibration import costs_of
from .costs import Costs
from .factors import Factors, view_factors
from .packed import plan_packed
from .slices import SUMS, Slice, Way


class Attached(NamedTuple):
    """ways: the way of a segment by its number of rows, filled as they occur, shared by all factors of one shape."""

    factors: Factors
    ways: dict[int, Way]


class Work(NamedTuple):
    """The step's slices by group: those with calls of their own, those between buffers, and those in bags."""

    alone: dict[int, list[Slice]]
    packed: dict[int, list[Slice]]
    bagged: dict[int, list[Slice]]

    def add(self, index: int, s: Slice) -> None:
        side = self.bagged if s.way.expand == SUMS else self.packed if s.packed else self.alone
        side.setdefault(index, []).append(s)


class Part(Protocol):
    """Some of a group's segments, whose deltas it adds to the outputs of all sites."""

    def add_(self, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None: ...


class TorchBypass:
    """`BypassBackend` in torch operators.

        for each segment s: y[s.start:s.end] += s.weight · (x[s.start:s.end] Aᵀ) Bᵀ

    x and y have the arena's dtype; every sum runs in fp32. In 16 bit, h is rounded to the arena's dtype between the
    two products unless both are wide, and the delta of short segments is rounded before it is added.

    costs: of the ways that a segment may be served in; measured if None.
    """

    takes_rows = False

    def __init__(self, arena: torch.Tensor, groups: Sequence[Group], costs: Costs | None = None) -> None:
        self._arena = arena
        self._groups = tuple(groups)
        self._costs = costs or costs_of(arena)
        self._ways: dict[object, dict[int, Way]] = {}
        self._slots: dict[int, Mapping[int, Attached]] = {}
        self._step: tuple[tuple[Segment, ...], tuple[Segment, ...]] | None = None
        self._plans: dict[int, tuple[Part, ...]] = {}

    def prepare(self, base: int, layout: BlobLayout) -> Mapping[int, Attached]:
        return {index: self._view(base, index, entry) for index, entry in layout.items() if entry.rank}

    def attach(self, slot: int, prepared: Mapping[int, Attached]) -> None:
        self._slots[slot] = prepared
        self._forget(slot)

    def detach(self, slot: int) -> None:
        del self._slots[slot]
        self._forget(slot)

    def kind_of(self, tokens: Sequence[Segment]) -> StepKind:
        return StepKind.EACH  # nothing is captured

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment], *, capacity: Capacity | None = None) -> bool:
        step = (tuple(tokens), tuple(logits))
        if step == self._step:
            return True
        self._step = step
        work = Work({}, {}, {})
        for segment in tokens:
            self._assign(segment, Rows.TOKENS, work)
        for segment in logits:
            self._assign(segment, Rows.LOGITS, work)
        self._plans = _join(
            {index: tuple(slices) for index, slices in work.alone.items()},
            {index: (part,) for index, part in plan_packed(self._groups, work.packed).items()},
            {index: (part,) for index, part in plan_bags(self._arena, self._groups, work.bagged).items()},
        )
        return True

    def lead_in(self) -> None: ...

    def start(self, group: int, x: torch.Tensor) -> None: ...

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        for part in self._plans.get(group, ()):
            part.add_(x, outputs)

    def _view(self, base: int, index: int, layout: GroupLayout) -> Attached:
        factors = view_factors(self._arena, base, self._groups[index], layout)
        shape = (self._groups[index], factors.ranks, factors.grain)
        return Attached(factors, self._ways.setdefault(shape, {}))

    def _forget(self, slot: int) -> None:
        """The step's plan, if the slot is in it: who runs without it plans nothing anew."""
        if any(segment.slot == slot for segments in self._step or () for segment in segments):
            self._step = None

    def _assign(self, s: Segment, rows: Rows, work: Work) -> None:
        if (length := s.end - s.start) == 0:
            return
        for index, (factors, ways) in self._slots[s.slot].items():
            if self._groups[index].rows is rows:
                if (way := ways.get(length)) is None:
                    way = ways[length] = self._costs.best(factors, length)
                work.add(index, Slice(factors, s.weight, s.start, s.end, way))


def _join(*plans: Mapping[int, tuple[Part, ...]]) -> dict[int, tuple[Part, ...]]:
    joined: dict[int, tuple[Part, ...]] = {}
    for plan in plans:
        for index, parts in plan.items():
            joined[index] = joined.get(index, ()) + parts
    return joined
