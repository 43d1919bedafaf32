"""How the primitives of a phase run: those of one kind of many adapters as one call, the others part by part.

A part is some rows of one adapter. Short ones, as all are at decode, are stacked by kind and shape: scales and biases
as rows that all rows are multiplied by or to which they are added, others in their batched form. What is long runs as
its formula reads, and so does what has no batched form, is alone, or finds no room for its stack. On a GPU the kinds
that have a kernel (`triton/`) are one launch each, whatever rows they share, which stacks nothing.
"""

from collections.abc import Hashable, Sequence
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .batched import BATCHED
from .batches import BatchRows, batch_rows, row_index
from .formulas import Op
from .grouping import ALONE, How, PartClass, PartGroup, grouped
from .site_plan import Batch, Part, Stacked, Step
from .stacks import Stacks

if TYPE_CHECKING:
    from .triton.lists import PlanLists

MOST_ROWS = 256  # of a batch
LONG = 16  # rows from which on a product of its own is right for an adapter


class _Alike(NamedTuple):
    """A step of a group, as all sites have it that have such parts. weights: as in `Batch`.

    rows: of a BATCH. where, owner: of ROWS, as in `row_index`. tiles: of a LAUNCH.
    """

    group: PartGroup
    weights: torch.Tensor | None = None
    rows: BatchRows | None = None
    where: slice | torch.Tensor | None = None
    owner: torch.Tensor | None = None
    tiles: Any = None


class Stepping:
    """A context in which the plans of one step are made.

    most_rows: of a batch. Parts of more than `long` rows are in none.
    kernels: whether those in Triton run; None where the adapters are on a GPU.
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
        self._alike: dict[Hashable, list[_Alike]] = {}  # of this step, by rows, weights and classes of a site's parts

    def __enter__(self) -> None:
        self._alike, self._lists = {}, None
        self._stacks.begin()

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stacks.end()
        if self._lists is not None:
            self._lists.send()

    def forget(self) -> None:
        """What is stacked, which may be of an adapter that leaves."""
        self._alike, self._lists = {}, None
        self._stacks.clear()

    def steps(self, parts: Sequence[Part]) -> list[Step]:
        """In an order that goes by the parts alone."""
        classes = [self._class(part) for part in parts]
        key = tuple((part.start, part.end, part.weight, which) for part, which in zip(parts, classes, strict=True))
        found = self._alike.get(key)
        if found is None:
            groups = grouped([(part.start, part.end) for part in parts], classes, self._most_rows)
            found = self._alike[key] = [_alike(group, [parts[i] for i in group.members]) for group in groups]
        return [step for one in found for step in self._steps(one, [parts[i] for i in one.group.members])]

    def _class(self, part: Part) -> PartClass:
        op, formula = part.op, part.op.formula
        if part.end - part.start > self._long:
            return ALONE
        if formula.row is not None:
            return PartClass(How.ROWS, part.width or op.fields[formula.row].shape[-1])
        if op.kind not in BATCHED:
            return ALONE
        how = How.LAUNCH if self._launched(op) else How.BATCH
        return PartClass(how, (op.kind, part.width, BATCHED[op.kind].key(op)))

    def _launched(self, op: Op) -> bool:
        wanted = device_of(op).type == "cuda" if self._kernels is None else self._kernels
        return wanted and op.kind in _triton().KERNELS

    def _steps(self, alike: _Alike, parts: Sequence[Part]) -> Sequence[Step]:
        if alike.group.how is How.ALONE:
            return parts
        if alike.group.how is How.ROWS:
            return [_stacked(alike, parts)]
        if alike.group.how is How.BATCH:
            return self._batch(alike, parts)
        if self._lists is None:
            self._lists = _triton().PlanLists(device_of(parts[0].op))
        return [_triton().launch(parts, alike.tiles, self._lists)]

    def _batch(self, alike: _Alike, parts: Sequence[Part]) -> Sequence[Step]:
        fields, op = self._stacks.of([part.op for part in parts]), parts[0].op
        if fields is None:
            return parts
        assert alike.rows is not None
        return [Batch(op.kind, fields, alike.rows, alike.weights, op.source, parts[0].width)]


def device_of(op: Op) -> torch.device:
    """Of its parameters; a module's, where it has none itself."""
    return next((v.device for v in op.fields.values() if isinstance(v, torch.Tensor)), torch.device("cpu"))


def _alike(group: PartGroup, parts: Sequence[Part]) -> _Alike:
    if group.how is How.ALONE:
        return _Alike(group)
    spans, device = [(part.start, part.end) for part in parts], device_of(parts[0].op)
    if group.how is How.LAUNCH:
        weights = [part.weight for part in parts]
        return _Alike(group, tiles=_triton().tiles_of(parts[0].op.kind, spans, weights))
    if group.how is How.BATCH:
        return _Alike(group, _weights(parts), batch_rows(spans, device))
    where, owner = row_index(spans, device)
    return _Alike(group, _weights(parts), where=where, owner=owner)


def _weights(parts: Sequence[Part]) -> torch.Tensor | None:
    if all(part.weight == 1 for part in parts):
        return None
    like = next(v for v in parts[0].op.fields.values() if isinstance(v, torch.Tensor) and v.is_floating_point())
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.tensor([part.weight for part in parts], dtype=dtype, device=like.device)


def _stacked(alike: _Alike, parts: Sequence[Part]) -> Stacked:
    rows = torch.stack([part.op.fields[part.op.formula.row or ""] for part in parts])
    values = rows if alike.weights is None else (rows * alike.weights[:, None]).to(rows.dtype)
    assert alike.where is not None
    return Stacked(alike.where, values if alike.owner is None else values.index_select(0, alike.owner))


def _triton() -> ModuleType:
    from .triton import launches  # not on machines without a GPU, which need no triton

    return launches
