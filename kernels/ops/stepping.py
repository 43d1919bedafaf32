"""How the primitives of a phase run: those of one kind of many adapters as one call, the others part by part.

A part is some rows of one adapter. Short ones, as all are at decode, are stacked by kind and shape: scales and biases
as rows that all rows are multiplied by or to which they are added, others in their batched form. What is long runs as
its formula reads, and so does what has no batched form, is alone, or finds no room for its stack. On a GPU the kinds
that have a kernel (`triton/`) are one launch each, whatever rows they share, which stacks nothing.
"""

from collections.abc import Hashable, Iterable, Sequence
from itertools import chain, pairwise
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

import torch

from .batched import BATCHED
from .batches import BatchRows, Span, alike, batch_rows, waves
from .formulas import Op
from .site_plan import Batch, Part, Stacked, Step
from .stacks import Stacks

if TYPE_CHECKING:
    from .triton.lists import PlanLists

MOST_ROWS = 256  # of a batch
LONG = 16  # rows from which on a product of its own is right for an adapter


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
        self._rows: dict[tuple[Span, ...], BatchRows] = {}  # of this step, which most of its sites have alike

    def __enter__(self) -> None:
        self._rows, self._lists = {}, None
        self._stacks.begin()

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stacks.end()
        if self._lists is not None:
            self._lists.send()

    def forget(self) -> None:
        """What is stacked, which may be of an adapter that leaves."""
        self._rows = {}
        self._stacks.clear()

    def steps(self, parts: Sequence[Part]) -> list[Step]:
        """In an order that goes by the parts alone."""
        classes: dict[Hashable, list[Part]] = {}
        for index, part in enumerate(parts):
            classes.setdefault(self._class(part, index), []).append(part)
        return list(chain.from_iterable(map(self._of_class, classes.values())))

    def _class(self, part: Part, index: int) -> Hashable:
        """Equal for parts that can be one step; their own for others."""
        formula, kind = part.op.formula, part.op.kind
        if part.end - part.start > self._long:
            return index
        if formula.row is not None:
            return formula.phase, part.width or part.op.fields[formula.row].shape[-1]
        if self._launched(part.op):
            return kind, part.width, _triton().KERNELS[kind].key(part.op)
        return (kind, part.width, BATCHED[kind].key(part.op)) if kind in BATCHED else index

    def _of_class(self, parts: Sequence[Part]) -> Iterable[Step]:
        op = parts[0].op
        if parts[0].end - parts[0].start > self._long:
            return parts
        if self._launched(op):
            return [self._launch(parts)]
        if op.formula.row is None and len(parts) == 1:
            return parts
        spans = [(part.start, part.end) for part in parts]
        groups = [[wave[i] for i in some] for wave in waves(spans) for some in self._alike([spans[i] for i in wave])]
        return chain.from_iterable(self._together([parts[i] for i in group]) for group in groups)

    def _launched(self, op: Op) -> bool:
        wanted = _device(op).type == "cuda" if self._kernels is None else self._kernels
        return wanted and op.kind in _triton().KERNELS

    def _launch(self, parts: Sequence[Part]) -> Step:
        if self._lists is None:
            self._lists = _triton().PlanLists(_device(parts[0].op))
        step: Step = _triton().launch(parts, self._lists)
        return step

    def _alike(self, spans: Sequence[Span]) -> list[list[int]]:
        return alike(spans, self._most_rows)

    def _together(self, parts: Sequence[Part]) -> Iterable[Step]:
        """Parts that share no row."""
        op = parts[0].op
        if op.formula.row is not None:
            return [_stacked(parts)]
        fields = self._stacks.of([part.op for part in parts]) if len(parts) > 1 else None
        if fields is None:
            return parts
        spans = tuple((part.start, part.end) for part in parts)
        if spans not in self._rows:
            self._rows[spans] = batch_rows(spans, _device(op))
        return [Batch(op.kind, fields, self._rows[spans], _weights(parts), op.source, parts[0].width)]


def _triton() -> ModuleType:
    from .triton import launches  # not on machines without a GPU, which need no triton

    return launches


def _device(op: Op) -> torch.device:
    """Of its parameters; a module's, where it has none itself."""
    return next((v.device for v in op.fields.values() if isinstance(v, torch.Tensor)), torch.device("cpu"))


def _weights(parts: Sequence[Part]) -> torch.Tensor | None:
    if all(part.weight == 1 for part in parts):
        return None
    like = next(v for v in parts[0].op.fields.values() if isinstance(v, torch.Tensor) and v.is_floating_point())
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.tensor([part.weight for part in parts], dtype=dtype, device=like.device)


def _stacked(parts: Sequence[Part]) -> Stacked:
    rows = [part.op.fields[part.op.formula.row or ""] * part.weight for part in parts]
    values = torch.cat([row.expand(part.end - part.start, -1) for row, part in zip(rows, parts, strict=True)])
    if all(one.end == other.start for one, other in pairwise(parts)):
        return Stacked(slice(parts[0].start, parts[-1].end), values)
    ids = [row for part in parts for row in range(part.start, part.end)]
    return Stacked(torch.tensor(ids, device=values.device), values)
