"""The primitives beside the low-rank bypass, for the adapters of a step.

At decode each adapter has a row or two: scales and biases of all adapters are then one multiplication or addition of
rows gathered once per plan. Everything else runs segment by segment, as its formula reads. A step whose adapters have
no such primitive has no plan, and the hooks ask for none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .layout import Rows, Segment
from .ops import Op, Phase, chained

STACKED_ROWS = 256

Inputs = Mapping[str, torch.Tensor]
_NONE: Inputs = {}


class Part(NamedTuple):
    """One primitive on rows [start, end) of the step."""

    op: Op
    weight: float
    start: int
    end: int


class Stacked(NamedTuple):
    """Rows to multiply by or to add, gathered for all segments. rows: a slice where they adjoin, else int64 ids."""

    rows: slice | torch.Tensor
    values: torch.Tensor

    def add_(self, target: torch.Tensor, factor: torch.Tensor | None) -> None:
        """`target[rows] += values · factor`; without a factor, `+= values`."""
        if isinstance(self.rows, slice):
            part = target[self.rows]
            values = _broadcast(self.values, part)
            part.add_(values) if factor is None else part.addcmul_(factor[self.rows], values)
            return
        values = _broadcast(self.values, target)
        terms = values if factor is None else values * factor.index_select(0, self.rows)
        target.index_add_(0, self.rows, terms)


@dataclass
class Terms:
    """What one phase of one site adds, in the order of the step's segments."""

    parts: list[Part] = field(default_factory=list)
    stacked: Stacked | None = None

    def apply_(self, phase: Phase, x: torch.Tensor, y: torch.Tensor, inputs: Inputs = _NONE) -> None:
        """Change y in place; for the input's phase, y is a copy of x. x, y: (rows, ..., width)."""
        if self.stacked is not None:
            self.stacked.add_(y, None if phase is Phase.ADD else x if phase is Phase.INPUT else y)
            return
        source = y.clone() if phase is not Phase.ADD and _overlap(self.parts) else y
        for op, weight, start, end in self.parts:
            rows = source[start:end]
            term = op((inputs[op.source] if op.source else x)[start:end], rows)
            if term.shape[-1] < y.shape[-1]:  # another adapter's vocabulary is larger
                term = F.pad(term, (0, y.shape[-1] - term.shape[-1]))
            if phase is not Phase.REPLACE:
                y[start:end].add_(term, alpha=weight)
            elif weight == 1 and source is y:
                y[start:end] = term
            else:
                y[start:end].add_(term - rows, alpha=weight)


class SitePlan(NamedTuple):
    """One site's work of the step, phase by phase; phases without any are absent.

    sources: names of the other modules whose input is needed here.
    """

    phases: Mapping[Phase, Terms]
    sources: frozenset[str] = frozenset()

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """The input that the base is to see: a new tensor, or x itself if no primitive changes it."""
        if Phase.INPUT not in self.phases:
            return x
        changed = x.clone()
        self.phases[Phase.INPUT].apply_(Phase.INPUT, x, changed)
        return changed

    @property
    def width(self) -> int:
        """Of the largest vocabulary that replaces the base's own; 0 if none does."""
        parts = self.phases[Phase.REPLACE].parts if Phase.REPLACE in self.phases else []
        return max((part.op.fields.get("width") or 0 for part in parts), default=0)

    def widened(self, y: torch.Tensor) -> torch.Tensor:
        """The base's output with room for the rows of the largest vocabulary that replaces its own."""
        return F.pad(y, (0, self.width - y.shape[-1])) if self.width > y.shape[-1] else y

    def after_(self, x: torch.Tensor, y: torch.Tensor, inputs: Inputs = _NONE) -> None:
        """Change the base's output y in place. x: the module's own input. inputs: those of the sources."""
        for phase in (Phase.REPLACE, Phase.OUTPUT, Phase.ADD):
            if phase in self.phases:
                self.phases[phase].apply_(phase, x, y, inputs)


class SideOps:
    """Slots come and go; `plans` is the current step's, by site, set by `begin`.

    rows_of: which rows of the step reach each site. stacked_rows: rows of all segments together up to which scales
        and biases are gathered.
    """

    def __init__(self, rows_of: Mapping[str, Rows], stacked_rows: int = STACKED_ROWS) -> None:
        self._rows_of = rows_of
        self._stacked_rows = stacked_rows
        self._slots: dict[int, Mapping[str, Sequence[Op]]] = {}
        self._work: object = None
        self.plans: Mapping[str, SitePlan] = {}

    def attach(self, slot: int, ops: Mapping[str, Sequence[Op]]) -> None:
        if ops:
            self._slots[slot] = ops
        self._work = None

    def detach(self, slot: int) -> None:
        self._slots.pop(slot, None)
        self._work = None
        self.plans = {}

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment]) -> None:
        if not self._slots:
            self.plans = {}
            return
        work = (tuple(tokens), tuple(logits))
        if work == self._work:
            return
        self._work = work
        segments = {Rows.TOKENS: tokens, Rows.LOGITS: logits}
        sites = {site for segment in tokens for site in self._slots.get(segment.slot, ())}
        self.plans = {site: self._plan(site, segments[self._rows_of[site]]) for site in sites}

    def _plan(self, site: str, segments: Sequence[Segment]) -> SitePlan:
        phases: dict[Phase, Terms] = {}
        for slot, weight, start, end in segments:
            for op in chained(self._slots.get(slot, {}).get(site, ())) if end > start else ():
                phases.setdefault(op.formula.phase, Terms()).parts.append(Part(op, weight, start, end))
        for terms in phases.values():
            terms.stacked = _stack(terms.parts, self._stacked_rows)
        sources = frozenset(part.op.source for terms in phases.values() for part in terms.parts)
        return SitePlan(phases, sources - {""})


def _stack(parts: Sequence[Part], most_rows: int) -> Stacked | None:
    """None where the parts are not all rows, are too long, or where mixtures have several on one row."""
    fields = [part.op.formula.row for part in parts]
    if None in fields or sum(p.end - p.start for p in parts) > most_rows or _overlap(parts):
        return None
    rows = [part.op.fields[name] * part.weight for part, name in zip(parts, fields, strict=True) if name]
    values = torch.cat([row.expand(part.end - part.start, -1) for row, part in zip(rows, parts, strict=True)])
    if all(one.end == other.start for one, other in pairwise(parts)):
        return Stacked(slice(parts[0].start, parts[-1].end), values)
    ids = [row for part in parts for row in range(part.start, part.end)]
    return Stacked(torch.tensor(ids, device=values.device), values)


def _overlap(parts: Sequence[Part]) -> bool:
    """Whether several parts are on one row."""
    spans = sorted((part.start, part.end) for part in parts)
    return any(one[1] > other[0] for one, other in pairwise(spans))


def _broadcast(rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """rows: (n, width), to the dimensions of target: (n, ..., width)."""
    return rows.view(rows.shape[0], *([1] * (target.dim() - 2)), rows.shape[1])
