"""Short segments, each with products of its own, between buffers that are made with the plan.

At a few rows a call costs more than what it computes, and a view of the input or of an output as much as a product. So
the group's input is copied once, all products run between views that exist already, and each site's deltas are added in
one call:

    x[rows] -> inputs,   inputs[i:j] Aᵀ -> h,   h B -> deltas[i:j],   y[rows] += deltas

Layers of one shape share their buffers, since they run one after the other. A row's sums do not depend on which other
rows run beside it: every segment's part of a buffer starts at a multiple of `ALIGNMENT`, as some libraries' sums depend
on that.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from ...integers import round_up
from ..layout import Group
from .factors import Factors
from .slices import ROWWISE, Slice, kind_of

ALIGNMENT = 32  # elements: 64 bytes in 16 bit

Rows = slice | torch.Tensor
"""Rows of a step: a slice where they follow each other, else (rows,) int64, in which a row may come more than once."""


class SiteViews(NamedTuple):
    """One segment's part of what a site's products read and write.

    segment: its number. h: (rows, rank). delta: (rows, out_features). pairs: both of these row by row, if rowwise.
    """

    segment: int
    h: torch.Tensor
    delta: torch.Tensor
    pairs: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None


class Buffers(NamedTuple):
    """rows: of the step, by segment. inputs: (rows, in_features). h: flat, by segment, with gaps.

    weights: of h's elements, None if all are 1. deltas: (rows, out_features) for each site, 0 where an adapter leaves
    the site alone. shrinks: each segment's inputs, and its part of h as (rows, sum of ranks). sites: those segments
    that change the site.
    """

    rows: Rows
    inputs: torch.Tensor
    h: torch.Tensor
    weights: torch.Tensor | None
    deltas: tuple[torch.Tensor, ...]
    shrinks: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    sites: tuple[tuple[SiteViews, ...], ...]


class Packed(NamedTuple):
    """One group's short segments."""

    buffers: Buffers
    factors: tuple[Factors, ...]

    def add_(self, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        """x: (rows, in_features). outputs: (rows, out_features) for each site."""
        self.shrink(x)
        self.expand_(outputs)

    def shrink(self, x: torch.Tensor) -> None:
        take_rows(x, self.buffers.rows, self.buffers.inputs)
        for (inputs, h), factors in zip(self.buffers.shrinks, self.factors, strict=True):
            torch.mm(inputs, factors.a, out=h)
        if self.buffers.weights is not None:
            self.buffers.h.mul_(self.buffers.weights)

    def expand_(self, outputs: Sequence[torch.Tensor | None]) -> None:
        for position, (views, y) in enumerate(zip(self.buffers.sites, outputs, strict=True)):
            if views and y is not None:
                for view in views:
                    _expand(view, self.factors[view.segment], position)
                add_rows_(y, self.buffers.rows, self.buffers.deltas[position])


def _expand(view: SiteViews, factors: Factors, position: int) -> None:
    _, h, delta, pairs = view
    if pairs is None:
        torch.mm(h, factors.b[position], out=delta)
        return
    b = factors.b_columns[position]
    for weights, row in pairs:
        torch.mv(b, weights, out=row)


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
        plans[index] = Packed(buffers, tuple(s.factors for s in slices))
    return plans


def _make_buffers(group: Group, slices: Sequence[Slice]) -> Buffers:
    lengths, dtype = [s.end - s.start for s in slices], slices[0].factors.a.dtype
    sizes = [round_up(length * s.factors.rank, ALIGNMENT) for length, s in zip(lengths, slices, strict=True)]
    with torch.inference_mode(False):  # else they could not be written outside of that mode
        inputs, *deltas = (
            torch.zeros(sum(lengths), round_up(width, ALIGNMENT), dtype=dtype)[:, :width]
            for width in (group.in_features, *group.out_features)
        )
        h = torch.zeros(sum(sizes), dtype=dtype)
    parts = zip(slices, inputs.split(lengths), h.split(sizes), strict=True)
    shrinks = tuple((x, flat[: len(x) * s.factors.rank].view(len(x), -1)) for s, x, flat in parts)
    columns = zip(*(h.split(s.factors.ranks, 1) for s, (_, h) in zip(slices, shrinks, strict=True)), strict=True)
    sites = tuple(_view_site(slices, site, delta.split(lengths)) for site, delta in zip(columns, deltas, strict=True))
    return Buffers(_rows_of(slices), inputs, h, _weights_of(slices, sizes), tuple(deltas), shrinks, sites)


def _view_site(
    slices: Sequence[Slice], columns: Sequence[torch.Tensor], deltas: Sequence[torch.Tensor]
) -> tuple[SiteViews, ...]:
    """columns: of h, (rows, rank) by segment. deltas: (rows, out_features) by segment."""
    return tuple(
        SiteViews(segment, h, delta, _pairs(h, delta) if s.way.expand == ROWWISE else None)
        for segment, (s, h, delta) in enumerate(zip(slices, columns, deltas, strict=True))
        if h.shape[1]
    )


def _pairs(h: torch.Tensor, delta: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    return tuple(zip(h.unbind(), delta.unbind(), strict=True))


def _weights_of(slices: Sequence[Slice], sizes: Sequence[int]) -> torch.Tensor | None:
    if all(s.weight == 1 for s in slices):
        return None
    return torch.cat([torch.full((size,), s.weight) for s, size in zip(slices, sizes, strict=True)])


def _rows_of(slices: Sequence[Slice]) -> Rows:
    if all(first.end == second.start for first, second in pairwise(slices)):
        return slice(slices[0].start, slices[-1].end)
    return torch.cat([torch.arange(s.start, s.end) for s in slices])
