"""The work of one site in a step, stage by stage, and how wide the output is for each adapter.

A step may hold an adapter with a larger vocabulary than the base's. The output is then widened once, and each primitive
gets the columns that its own adapter knows: the formulas of the others never see the rest. Knows no slots and no work
lists.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from .batched import BATCHED, Fields
from .batches import BatchRows
from .formulas import Op, Stage

Inputs = Mapping[str, torch.Tensor]
Module = Callable[[torch.Tensor], torch.Tensor]
_NONE: Inputs = {}


class StageTensors(NamedTuple):
    """The tensors of one stage of one site, as it runs.

    x: the module's own input. y: the tensor that is changed in place. before: y as the stage found it, where that is
    read: y itself, or a copy if several segments are on one row. base_width: of the output, without what larger
    vocabularies add. inputs: those of the modules that primitives name as their source.
    """

    stage: Stage
    x: torch.Tensor
    y: torch.Tensor
    before: torch.Tensor
    base_width: int
    inputs: Inputs


class SiteCall(Protocol):
    """One operator, or a few, that add terms of a stage."""

    def add_(self, tensors: StageTensors) -> None:
        """Add the terms to y in place."""


class OpSegment(NamedTuple):
    """One primitive on rows [start, end) of the step.

    width: columns of the output that it reads and changes; 0 for all of the base's own.
    """

    op: Op
    weight: float
    start: int
    end: int
    width: int = 0

    def add_(self, tensors: StageTensors) -> None:
        x = tensors.inputs[self.op.source] if self.op.source else tensors.x
        own, rows = (
            y[self.start : self.end, ..., : self.width or tensors.base_width] for y in (tensors.y, tensors.before)
        )
        term = self.op(x[self.start : self.end], rows)
        if tensors.stage is not Stage.REPLACE:
            own.add_(term, alpha=self.weight)
        elif self.weight == 1 and tensors.before is tensors.y:
            own.copy_(term)
        else:
            own.add_(term - rows, alpha=self.weight)


class Stacked(NamedTuple):
    """Rows to multiply by or to add, gathered for all segments. rows: a slice where they adjoin, else int64 ids."""

    rows: slice | torch.Tensor
    values: torch.Tensor

    def add_(self, tensors: StageTensors) -> None:
        """Add `values · factor`, or `values`, to the rows of y. x and y may be wider than the values are."""
        width, stage = self.values.shape[-1], tensors.stage
        factor = None if stage is Stage.ADD else tensors.x if stage is Stage.INPUT else tensors.before
        target, factor = tensors.y[..., :width], None if factor is None else factor[..., :width]
        if isinstance(self.rows, slice):
            own = target[self.rows]
            values = _broadcast(self.values, own)
            own.add_(values) if factor is None else own.addcmul_(factor[self.rows], values)
            return
        values = _broadcast(self.values, target)
        terms = values if factor is None else values * factor.index_select(0, self.rows)
        target.index_add_(0, self.rows, terms)


class Batch(NamedTuple):
    """Segments of one kind on rows that no two of them share, as one call.

    fields: stacked parameters. weights: one for each segment; None if all are 1. source, width: of each, as in
    `OpSegment`.
    """

    kind: str
    fields: Fields
    rows: BatchRows
    weights: torch.Tensor | None
    source: str
    width: int

    def add_(self, tensors: StageTensors) -> None:
        width = self.width or tensors.base_width
        x = self.rows.of(tensors.inputs[self.source] if self.source else tensors.x)
        before = self.rows.of(tensors.before[..., :width]) if tensors.stage is Stage.OUTPUT else None
        terms = BATCHED[self.kind].function(x, before, **self.fields)
        if self.weights is not None:
            terms = terms * self.weights.view(-1, *[1] * (terms.dim() - 1))
        self.rows.add_(tensors.y[..., :width], terms)


@dataclass
class Terms:
    """The terms that one stage of one site adds. segments: in the order of the step's. calls: how they are added."""

    segments: list[OpSegment] = field(default_factory=list)
    calls: Sequence[SiteCall] = ()  # set when all segments are there

    def apply_(self, stage: Stage, x: torch.Tensor, y: torch.Tensor, base_width: int, inputs: Inputs = _NONE) -> None:
        """Add the terms to y in place; in the input's stage y is a copy of x. x, y: (rows, ..., width)."""
        reads = stage in (Stage.REPLACE, Stage.OUTPUT)
        tensors = StageTensors(stage, x, y, y.clone() if reads and self._overlap else y, base_width, inputs)
        for call in self.calls:
            call.add_(tensors)

    @cached_property
    def _overlap(self) -> bool:
        return overlap(self.segments)


class Whole(NamedTuple):
    """An adapter on rows [start, end) whose primitives are no sum, so that a weight applies to its whole effect alone.

    plan: of this adapter alone at weight 1, on these rows counted from 0.
    """

    plan: "SitePlan"
    weight: float
    start: int
    end: int

    def add_(self, x: torch.Tensor, y: torch.Tensor, inputs: Inputs, module: Module) -> None:
        """Compute `y[start:end] += weight · (the module with the adapter - the module)`, on the module's own input."""
        x = x[self.start : self.end]
        own = {name: tensor[self.start : self.end] for name, tensor in inputs.items()}
        base = self.plan.widened(module(x))
        adapted = self.plan.after(x, module(self.plan.before(x)), module, own)
        y[self.start : self.end, ..., : base.shape[-1]].add_(adapted - base, alpha=self.weight)


class SitePlan(NamedTuple):
    """The work of one site. stages: those that have any. wholes: adapters that are added whole, after the stages.

    width: of the largest vocabulary that replaces the base's own; 0 if none does.
    """

    stages: Mapping[Stage, Terms]
    wholes: Sequence["Whole"] = ()
    width: int = 0

    @property
    def sources(self) -> frozenset[str]:
        """Return the names of the other modules whose input is needed here."""
        own = {segment.op.source for terms in self.stages.values() for segment in terms.segments} - {""}
        return frozenset(own).union(*(whole.plan.sources for whole in self.wholes))

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input that the base is to see: a new tensor, or x itself if no primitive changes it."""
        if Stage.INPUT not in self.stages:
            return x
        changed = x.clone()
        self.stages[Stage.INPUT].apply_(Stage.INPUT, x, changed, x.shape[-1])
        return changed

    def widened(self, y: torch.Tensor) -> torch.Tensor:
        """Pad the base's output with zeros for the tokens of the largest vocabulary."""
        return F.pad(y, (0, self.width - y.shape[-1])) if self.width > y.shape[-1] else y

    def after(self, x: torch.Tensor, y: torch.Tensor, module: Module, inputs: Inputs = _NONE) -> torch.Tensor:
        """Return the base's output with all that is added here: y itself, or a new tensor where a vocabulary is larger.

        x, y: (rows, ..., width), or x: (rows,) ids. x is the module's own input. module: the base's, for any rows.
        inputs: those of the sources.
        """
        base_width, y = y.shape[-1], self.widened(y)
        for stage in (Stage.REPLACE, Stage.OUTPUT, Stage.ADD):
            if stage in self.stages:
                self.stages[stage].apply_(stage, x, y, base_width, inputs)
        for whole in self.wholes:
            whole.add_(x, y, inputs, module)
        return y


def overlap(segments: Sequence[OpSegment]) -> bool:
    """Return whether two segments share a row."""
    ranges = sorted((segment.start, segment.end) for segment in segments)
    return any(one[1] > other[0] for one, other in pairwise(ranges))


def _broadcast(rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """View rows (n, width) with as many dimensions as target has: (n, ..., width)."""
    return rows.view(rows.shape[0], *([1] * (target.dim() - 2)), rows.shape[1])
