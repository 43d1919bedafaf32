"""The bypasses on a CPU, in torch's operators and the compiled loop; on any other device a reference.

How a segment is served is decided by the measured cost of each way on this machine: by products of its own, one for the
group and one for each site (`slices.py`), or together with others in one loop that is compiled at start (`cpp/`), where
there is a compiler.

The plan of a step is made when the work list changes: a decode, where the same sequences run step after step, plans
nothing.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch

from ..cpp.loading import load_loop
from ..cpp.tables import GroupTables, plan_loops
from ..layout import BlobLayout, Capacity, Group, GroupLayout, RowSet, Segment, StepKind
from .calibration import costs_of
from .costs import Costs
from .factors import Factors, view_factors
from .slices import LOOP, Slice, Way


class Attached(NamedTuple):
    """An adapter's factors of one group.

    ways: by a segment's number of rows, filled as they occur, shared by equal shapes.
    """

    factors: Factors
    ways: dict[int, Way]


class Work(NamedTuple):
    """The step's slices by group: those with products of their own, and those in the compiled loop."""

    alone: dict[int, list[Slice]]
    looped: dict[int, list[Slice]]

    def add(self, index: int, s: Slice) -> None:
        (self.looped if s.way.shrink == LOOP else self.alone).setdefault(index, []).append(s)


class GroupCall(Protocol):
    """Some of a group's segments, whose deltas it adds to the outputs of all sites."""

    def add_(self, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        """Add the deltas in place."""


class TorchBypass:
    """`BypassBackend` in torch operators.

        for each segment s: y[s.start:s.end] += s.weight · (x[s.start:s.end] Aᵀ) Bᵀ

    x and y have the arena's dtype; every sum runs in fp32. In 16 bits, h is rounded to the arena's dtype between two
    products unless both are wide; in the loop it stays in fp32.

    costs: of the ways to serve a segment; measured if None.
    """

    fuses_scale_and_bias = False

    def __init__(self, arena: torch.Tensor, groups: Sequence[Group], costs: Costs | None = None) -> None:
        self._arena = arena
        self._groups = tuple(groups)
        self._costs = costs or costs_of(arena)
        self._loop = load_loop(arena.dtype) if self._costs.loop else None
        self._tables = [GroupTables(group) for group in groups]
        self._ways: dict[object, dict[int, Way]] = {}
        self._slots: dict[int, Mapping[int, Attached]] = {}
        self._step: tuple[tuple[Segment, ...], tuple[Segment, ...]] | None = None
        self._plans: dict[int, tuple[GroupCall, ...]] = {}

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
        work = Work({}, {})
        for segment in tokens:
            self._assign(segment, RowSet.TOKENS, work)
        for segment in logits:
            self._assign(segment, RowSet.LOGITS, work)
        looped = plan_loops(self._loop, self._tables, work.looped) if self._loop is not None else {}
        self._plans = {index: tuple(slices) for index, slices in work.alone.items()}
        for index, part in looped.items():
            self._plans[index] = (*self._plans.get(index, ()), part)
        return True

    def lead_in(self) -> None: ...

    def start(self, group: int, x: torch.Tensor) -> None: ...

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        for part in self._plans.get(group, ()):
            part.add_(x, outputs)

    def _view(self, base: int, index: int, layout: GroupLayout) -> Attached:
        factors = view_factors(self._arena, base, self._groups[index], layout)
        shape = (self._groups[index], factors.ranks)
        return Attached(factors, self._ways.setdefault(shape, {}))

    def _forget(self, slot: int) -> None:
        """Drop the plan of the step, if the slot is in it. Steps without the slot keep theirs."""
        if any(segment.slot == slot for segments in self._step or () for segment in segments):
            self._step = None

    def _assign(self, s: Segment, rows: RowSet, work: Work) -> None:
        if (length := s.end - s.start) == 0:
            return
        for index, (factors, ways) in self._slots[s.slot].items():
            if self._groups[index].rows is rows:
                if (way := ways.get(length)) is None:
                    way = ways[length] = self._costs.best(factors, length)
                work.add(index, Slice(factors, s.weight, s.start, s.end, way))
