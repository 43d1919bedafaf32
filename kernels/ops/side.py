"""The primitives beside the low-rank bypass, for the adapters of a step: which of them run, and in what form.

At decode each adapter has a row or two, and primitives of one kind run for all adapters at once (`planner.py`). A step
whose adapters have no such primitive has no plan, and the hooks ask for none.

The terms of a site are summed stage by stage, each stage reading what the one before left. That is the sum of what each
adapter adds by itself only if at most one stage is read by another: an adapter that rotates the input and scales the
output has both in one product, to which no weight can be applied. Such adapters are added whole
(`site_plan.Whole`) wherever they have another weight than 1 or are mixed with their like.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice, takewhile
from typing import NamedTuple

from ..bypass.layout import RowSet, Segment
from .formulas import Op, Stage, chained
from .planner import CallPlanner
from .site_plan import OpSegment, SitePlan, Terms, Whole

_READ = frozenset({Stage.INPUT, Stage.REPLACE, Stage.OUTPUT})  # by the stages after them, or reading these


class _Acting(NamedTuple):
    """One segment at one site, with the primitives of its adapter there."""

    segment: Segment
    ops: Sequence[Op]

    @property
    def stages(self) -> frozenset[Stage]:
        return frozenset(op.formula.stage for op in self.ops)


class SideOps:
    """The primitives of the attached slots, and the plans of the current step.

    plans: by site, set by `begin`. rows_of: which rows of the step reach each site. planner: chooses how the primitives
    of a stage run.
    """

    def __init__(self, rows_of: Mapping[str, RowSet], planner: CallPlanner | None = None) -> None:
        self._rows_of = rows_of
        self._planner = planner or CallPlanner()
        self._slots: dict[int, Mapping[str, Sequence[Op]]] = {}
        self._work: tuple[tuple[Segment, ...], tuple[Segment, ...]] | None = None
        self.plans: Mapping[str, SitePlan] = {}

    def attach(self, slot: int, ops: Mapping[str, Sequence[Op]]) -> None:
        """Serve a slot with these primitives, by site."""
        if ops:
            self._slots[slot] = ops
        self._forget(slot)

    def detach(self, slot: int) -> None:
        """Stop serving a slot. Slots that have nothing are ignored."""
        self._slots.pop(slot, None)
        self._forget(slot)

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment]) -> None:
        """Plan a step, unless its segments are those of the last one.

        tokens, logits: over all rows, and over those of the head.
        """
        if not self._slots:
            self.plans = {}
            return
        work = (tuple(tokens), tuple(logits))
        if work == self._work:
            return
        self._work = work
        segments = {RowSet.TOKENS: tokens, RowSet.LOGITS: logits}
        sites = {site for segment in tokens for site in self._slots.get(segment.slot, ())}
        with self._planner:
            self.plans = {site: self._plan(site, segments[self._rows_of[site]]) for site in sites}

    def _forget(self, slot: int) -> None:
        """Drop the plans of the step, if the slot is in it. Steps without the slot keep theirs."""
        if any(segment.slot == slot for segments in self._work or () for segment in segments):
            self._work, self.plans = None, {}
            self._planner.forget()

    def _plan(self, site: str, segments: Sequence[Segment]) -> SitePlan:
        acting = [
            _Acting(segment, chained(ops))
            for segment in segments
            if segment.end > segment.start and (ops := self._slots.get(segment.slot, {}).get(site))
        ]
        apart = _apart(acting)
        plan = _plan_of([one for one in acting if one.segment not in apart], self._planner)
        wholes = [_whole(one) for one in acting if one.segment in apart]
        return plan._replace(wholes=wholes, width=max([plan.width, *(whole.plan.width for whole in wholes)]))


def is_sum(stages: Collection[Stage]) -> bool:
    """Return whether terms of these stages add up to the sum of what each does by itself."""
    return len(_READ.intersection(stages)) < 2


def _apart(acting: Sequence[_Acting]) -> set[Segment]:
    """Return the segments whose adapters are to be added whole."""
    reading = sorted((one for one in acting if _READ & one.stages), key=lambda one: one.segment.start)
    found = {one.segment for one in reading if one.segment.weight != 1 and not is_sum(one.stages)}
    for index, one in enumerate(reading):
        for other in takewhile(lambda o: o.segment.start < one.segment.end, islice(reading, index + 1, None)):  # noqa: B023
            if not is_sum(one.stages | other.stages):
                found |= {one.segment, other.segment}
    return found


def _whole(one: _Acting) -> Whole:
    segment = one.segment
    alone = _Acting(Segment(segment.slot, 1.0, 0, segment.end - segment.start), one.ops)
    return Whole(_plan_of([alone], None), segment.weight, segment.start, segment.end)


def _plan_of(acting: Iterable[_Acting], planner: CallPlanner | None) -> SitePlan:
    """Plan the stages of one site. planner: None runs every segment by itself."""
    stages: dict[Stage, Terms] = {}
    width = 0
    for (_, weight, start, end), ops in acting:
        vocabulary = max(op.fields.get("width") or 0 for op in ops)
        width = max(width, vocabulary)
        for op in ops:
            own = OpSegment(op, weight, start, end, _width(op, vocabulary))
            stages.setdefault(op.formula.stage, Terms()).segments.append(own)
    for terms in stages.values():
        terms.calls = terms.segments if planner is None else planner.calls(terms.segments)
    return SitePlan(stages, width=width)


def _width(op: Op, vocabulary: int) -> int:
    """Return how many columns of the output a primitive reads and changes: its row's length, or a head's vocabulary.

    0 stands for all of the base's own columns.
    """
    if op.formula.stage is Stage.INPUT:
        return 0
    return vocabulary if op.formula.row is None else op.fields[op.formula.row].shape[-1]
