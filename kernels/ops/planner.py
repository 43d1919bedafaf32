"""How the primitives of a stage run: those of one kind of many adapters as one call, others segment by segment.

Short segments, as all are at decode, are stacked by kind and shape: scales and biases as rows to multiply by or to add,
other kinds in their batched form. A long segment runs as its formula reads, and so does one that has no batched form,
is alone, or finds no room for its stack. On a GPU the kinds that have a kernel (`triton/`) are one launch each,
whatever rows they share, and nothing is stacked.
"""

from collections.abc import Hashable, Sequence
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .batched import BATCHED
from .batches import BatchRows, batch_rows, row_index
from .formulas import Op
from .grouping import ALONE, CallForm, SegmentClass, SegmentGroup, grouped
from .site_plan import Batch, OpSegment, SiteCall, Stacked
from .stacks import Stacks

if TYPE_CHECKING:
    from .triton.lists import PlanLists

MOST_ROWS = 256  # of a batch
LONG = 16  # rows from which on a product of its own is right for an adapter


class _GroupPlan(NamedTuple):
    """One call of a group of segments, shared by all sites whose segments agree. weights: as in `Batch`.

    rows: of a BATCH. where, owner: of ROWS, as in `row_index`. tiles: of a LAUNCH.
    """

    group: SegmentGroup
    weights: torch.Tensor | None = None
    rows: BatchRows | None = None
    where: slice | torch.Tensor | None = None
    owner: torch.Tensor | None = None
    tiles: Any = None


class CallPlanner:
    """Plans the calls of one step, as a context in which its site plans are made.

    most_rows: of a batch. Segments of more than `long` rows are in none. kernels: whether those in Triton run; None to
    use them where the adapters are on a GPU.
    """

    def __init__(
        self,
        most_rows: int = MOST_ROWS,
        long: int = LONG,
        stacks: Stacks | None = None,
        kernels: bool | None = None,
    ) -> None:
        self._most_rows = most_rows
        self._long = min(long, most_rows)
        self._stacks = stacks or Stacks()
        self._kernels = kernels
        self._lists: PlanLists | None = None  # of this step's launches; made for the first
        self._plans: dict[
            Hashable, list[_GroupPlan]
        ] = {}  # of this step, by rows, weights and classes of a site's segments

    def __enter__(self) -> None:
        self._plans, self._lists = {}, None
        self._stacks.begin()

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stacks.end()
        if self._lists is not None:
            self._lists.send()

    def forget(self) -> None:
        """Drop all that is stacked, which may be of an adapter that leaves."""
        self._plans, self._lists = {}, None
        self._stacks.clear()

    def calls(self, segments: Sequence[OpSegment]) -> list[SiteCall]:
        """Return the calls that add all segments, in an order that depends on the segments alone."""
        classes = [self._class(segment) for segment in segments]
        key = tuple(
            (segment.start, segment.end, segment.weight, which)
            for segment, which in zip(segments, classes, strict=True)
        )
        found = self._plans.get(key)
        if found is None:
            groups = grouped([(segment.start, segment.end) for segment in segments], classes, self._most_rows)
            found = self._plans[key] = [_plan_group(group, [segments[i] for i in group.members]) for group in groups]
        return [call for one in found for call in self._calls(one, [segments[i] for i in one.group.members])]

    def _class(self, segment: OpSegment) -> SegmentClass:
        op, formula = segment.op, segment.op.formula
        if segment.end - segment.start > self._long:
            return ALONE
        if formula.row is not None:
            return SegmentClass(CallForm.ROWS, segment.width or op.fields[formula.row].shape[-1])
        if op.kind not in BATCHED:
            return ALONE
        form = CallForm.LAUNCH if self._launched(op) else CallForm.BATCH
        return SegmentClass(form, (op.kind, segment.width, BATCHED[op.kind].key(op)))

    def _launched(self, op: Op) -> bool:
        wanted = device_of(op).type == "cuda" if self._kernels is None else self._kernels
        return wanted and op.kind in _triton().KERNELS

    def _calls(self, plan: _GroupPlan, segments: Sequence[OpSegment]) -> Sequence[SiteCall]:
        if plan.group.form is CallForm.ALONE:
            return segments
        if plan.group.form is CallForm.ROWS:
            return [_stacked(plan, segments)]
        if plan.group.form is CallForm.BATCH:
            return self._batch(plan, segments)
        if self._lists is None:
            self._lists = _triton().PlanLists(device_of(segments[0].op))
        return [_triton().launch(segments, plan.tiles, self._lists)]

    def _batch(self, plan: _GroupPlan, segments: Sequence[OpSegment]) -> Sequence[SiteCall]:
        fields, op = self._stacks.of([segment.op for segment in segments]), segments[0].op
        if fields is None:
            return segments
        assert plan.rows is not None
        return [Batch(op.kind, fields, plan.rows, plan.weights, op.source, segments[0].width)]


def device_of(op: Op) -> torch.device:
    """Return the device of a primitive's parameters; the CPU for a module, which has none itself."""
    return next((v.device for v in op.fields.values() if isinstance(v, torch.Tensor)), torch.device("cpu"))


def _plan_group(group: SegmentGroup, segments: Sequence[OpSegment]) -> _GroupPlan:
    if group.form is CallForm.ALONE:
        return _GroupPlan(group)
    ranges, device = [(segment.start, segment.end) for segment in segments], device_of(segments[0].op)
    if group.form is CallForm.LAUNCH:
        weights = [segment.weight for segment in segments]
        return _GroupPlan(group, tiles=_triton().tiles_of(segments[0].op.kind, ranges, weights))
    if group.form is CallForm.BATCH:
        return _GroupPlan(group, _weights(segments), batch_rows(ranges, device))
    where, owner = row_index(ranges, device)
    return _GroupPlan(group, _weights(segments), where=where, owner=owner)


def _weights(segments: Sequence[OpSegment]) -> torch.Tensor | None:
    if all(segment.weight == 1 for segment in segments):
        return None
    like = next(v for v in segments[0].op.fields.values() if isinstance(v, torch.Tensor) and v.is_floating_point())
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.tensor([segment.weight for segment in segments], dtype=dtype, device=like.device)


def _stacked(plan: _GroupPlan, segments: Sequence[OpSegment]) -> Stacked:
    rows = torch.stack([segment.op.fields[segment.op.formula.row or ""] for segment in segments])
    values = rows if plan.weights is None else (rows * plan.weights[:, None]).to(rows.dtype)
    assert plan.where is not None
    return Stacked(plan.where, values if plan.owner is None else values.index_select(0, plan.owner))


def _triton() -> ModuleType:
    from .triton import launches  # not on machines without a GPU, which need no triton

    return launches
