"""Short segments, each with products of its own, between buffers that are made with the plan.

At a few rows a call costs more than what it computes, and a view of the input or of an output as much as a product. So
the group's input is copied once, all products run between views that exist already, and each site's deltas are added in
one call:

    x[rows] -> inputs,   inputs[i:j] Aᵀ -> h,   h B -> deltas[i:j],   y[rows] += deltas

Layers of one shape share their buffers, since they run one after the other. A row's sums do not depend on which other
rows run beside it: every segment's part of a buffer starts at a multiple of `ALIGNMENT`, as some libraries' sums depend
on that.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from .factors import Factors
from .layout import Group
from .slices import ROWWISE, Slice, kind_of

ALIGNMENT = 32  # elements: 64 bytes in 16 bit

Rows = slice | torch.Tensor
"""Rows of a step: a slice where they follow each other, else (rows,) int64, in which a row may come more than once."""

Call = tuple[Callable[..., Any], torch.Tensor, torch.Tensor, torch.Tensor]
"""A product, its operands, and where it goes."""


class Views(NamedTuple):
    """One segment's part of the buffers. x: (rows, in_features). h: (rows, sum of ranks).

    columns: of h, (rows, rank) of each site. deltas: (rows, out_features) of each site. rows: both of these, by row.
    """

    x: torch.Tensor
    h: torch.Tensor
    columns: tuple[torch.Tensor, ...]
    deltas: tuple[torch.Tensor, ...]
    rows: tuple[tuple[tuple[torch.Tensor, torch.Tensor], ...], ...]


class Buffers(NamedTuple):
    """inputs: (rows, in_features). h: flat, by segment, with gaps. weights: of its elements, None if all are 1.

    rows: of the step, by segment. deltas: (rows, out_features) of each site, 0 where the adapter leaves it alone.
    """

    rows: Rows
    inputs: torch.Tensor
    h: torch.Tensor
    weights: torch.Tensor | None
    deltas: tuple[torch.Tensor, ...]
    views: tuple[Views, ...]


class Packed(NamedTuple):
    """One group's short segments. shrinks: a call for each. expands: for each site, the calls of all segments."""

    buffers: Buffers
    shrinks: tuple[Call, ...]
    expands: tuple[tuple[Call, ...], ...]

    def add_(self, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        """x: (rows, in_features). outputs: (rows, out_features) for each site."""
        self.shrink(x)
        self.expand_(outputs)

    def shrink(self, x: torch.Tensor) -> None:
        take_rows(x, self.buffers.rows, self.buffers.inputs)
        for product, left, right, out in self.shrinks:
            product(left, right, out=out)
        if self.buffers.weights is not None:
            self.buffers.h.mul_(self.buffers.weights)

    def expand_(self, outputs: Sequence[torch.Tensor | None]) -> None:
        for calls, deltas, y in zip(self.expands, self.buffers.deltas, outputs, strict=True):
            if calls and y is not None:
                for product, left, right, out in calls:
                    product(left, right, out=out)
                add_rows_(y, self.buffers.rows, deltas)


def take_rows(x: torch.Tensor, rows: Rows, out: torch.Tensor) -> None:
    if isinstance(rows, slice):
        out.copy_(x if len(x) == len(out) else x[rows])
    else:
        torch.index_select(x, 0, rows, out=out)


def add_rows_(y: torch.Tensor, rows: Rows, delta: torch.Tensor) -> None:
    """delta: (rows, out_features)."""
    if isinstance(rows, slice):
        (y if len(y) == len(delta) else y[rows]).add_(delta)
    else:
        y.index_add_(0, rows, delta)


def plan_packed(groups: Sequence[Group], work: Mapping[int, Sequence[Slice]]) -> dict[int, Packed]:
    """work: the short segments of each group that has any."""
    made: dict[object, Buffers] = {}
    plans: dict[int, Packed] = {}
    for index, slices in work.items():
        kind = kind_of(groups[index], slices)
        if (buffers := made.get(kind)) is None:
            buffers = made[kind] = _make_buffers(groups[index], slices)
        plans[index] = _plan(buffers, slices)
    return plans


def _plan(buffers: Buffers, slices: Sequence[Slice]) -> Packed:
    parts = list(zip(slices, buffers.views, strict=True))
    shrinks = tuple((torch.mm, views.x, s.factors.a, views.h) for s, views in parts)
    sites = range(len(buffers.deltas))
    return Packed(buffers, shrinks, tuple(tuple(c for s, v in parts for c in _expand(s, v, site)) for site in sites))


def _expand(s: Slice, views: Views, site: int) -> list[Call]:
    if not s.factors.ranks[site]:
        return []
    if s.way.expand == ROWWISE:
        b = s.factors.b_columns[site]
        return [(torch.mv, b, h, delta) for h, delta in views.rows[site]]
    return [(torch.mm, views.columns[site], s.factors.b[site], views.deltas[site])]


def _make_buffers(group: Group, slices: Sequence[Slice]) -> Buffers:
    lengths, dtype = [s.end - s.start for s in slices], slices[0].factors.a.dtype
    sizes = [_aligned(length * s.factors.rank) for length, s in zip(lengths, slices, strict=True)]
    with torch.inference_mode(False):  # else they could not be written outside of that mode
        inputs, *deltas = (
            torch.zeros(sum(lengths), _aligned(width), dtype=dtype)[:, :width]
            for width in (group.in_features, *group.out_features)
        )
        h = torch.zeros(sum(sizes), dtype=dtype)
    parts = zip(slices, inputs.split(lengths), h.split(sizes), *(d.split(lengths) for d in deltas), strict=True)
    views = tuple(_view(s.factors, x, flat, delta) for s, x, flat, *delta in parts)
    return Buffers(_rows_of(slices), inputs, h, _weights_of(slices, sizes), tuple(deltas), views)


def _view(factors: Factors, x: torch.Tensor, flat: torch.Tensor, deltas: Sequence[torch.Tensor]) -> Views:
    h = flat[: len(x) * factors.rank].view(len(x), factors.rank)
    columns = h.split(factors.ranks, 1)
    rows = tuple(
        tuple(zip(part.unbind(), delta.unbind(), strict=True)) for part, delta in zip(columns, deltas, strict=True)
    )
    return Views(x, h, columns, tuple(deltas), rows)


def _weights_of(slices: Sequence[Slice], sizes: Sequence[int]) -> torch.Tensor | None:
    if all(s.weight == 1 for s in slices):
        return None
    return torch.cat([torch.full((size,), s.weight) for s, size in zip(slices, sizes, strict=True)])


def _aligned(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT


def _rows_of(slices: Sequence[Slice]) -> Rows:
    if all(first.end == second.start for first, second in pairwise(slices)):
        return slice(slices[0].start, slices[-1].end)
    return torch.cat([torch.arange(s.start, s.end) for s in slices])
