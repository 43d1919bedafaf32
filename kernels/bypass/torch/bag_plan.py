"""Lays out the samples of the short segments (see `bags.py`). Layers of one shape are planned together."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ...integers import Ints, ranges
from ..layout import Group
from .bags import Bags, Dots, Sums
from .packed import Rows
from .slices import DOTS, Slice, kind_of


class _Samples(NamedTuple):
    """The samples of one site, by row, then segment, then rank: so a row that several segments cover is one bag.

    segment, rank: (samples,). place: (samples,) where in h. rows: (distinct rows,), ascending; counts: samples of each.
    """

    segment: Ints
    rank: Ints
    place: Ints
    rows: Ints
    counts: Ints


class _Pieces(NamedTuple):
    """One site's bags. entries: (groups, samples · pieces) rows of the table. sizes: (rows · pieces,) entries of each.

    samples: (samples · pieces,) where in h the weight of each entry is.
    """

    entries: Ints
    sizes: Ints
    samples: Ints


def plan_bags(arena: torch.Tensor, groups: Sequence[Group], work: Mapping[int, Sequence[Slice]]) -> dict[int, Bags]:
    """work: the short segments of each group that has any."""
    alike: dict[object, list[int]] = {}
    for index, slices in work.items():
        alike.setdefault(kind_of(groups[index], slices), []).append(index)
    plans: dict[int, Bags] = {}
    for members in alike.values():
        bags = _plan_alike(arena, groups[members[0]], [work[index] for index in members])
        plans.update(zip(members, bags, strict=True))
    return plans


def _plan_alike(arena: torch.Tensor, group: Group, work: Sequence[Sequence[Slice]]) -> list[Bags]:
    """work: (groups, segments), whose members differ only in where their factors lie."""
    products = [tuple(s for s in slices if s.way.shrink != DOTS) for slices in work]
    parts = zip(_plan_dots(arena, group, work), products, _plan_sums(arena, group, work), strict=True)
    return [Bags(*part) for part in parts]


def _plan_dots(arena: torch.Tensor, group: Group, work: Sequence[Sequence[Slice]]) -> Sequence[Dots | None]:
    """One per group, None where all segments make h by products."""
    chosen = [i for i, s in enumerate(work[0]) if s.way.shrink == DOTS]
    if not chosen:
        return [None] * len(work)
    row = np.concatenate([np.arange(work[0][i].start, work[0][i].end) for i in chosen])
    segment = np.repeat(chosen, [work[0][i].end - work[0][i].start for i in chosen])
    sizes = np.array([s.factors.rank for s in work[0]])[segment]
    row, segment, rank = np.repeat(row, sizes), np.repeat(segment, sizes), ranges(sizes)
    base = np.array([[s.factors.a_offset for s in slices] for slices in work])
    a = _tensor(base[:, segment] + rank * group.in_features)
    weights = np.array([s.weight for s in work[0]], dtype=np.float32)[segment]
    windows = arena.unfold(0, group.in_features, 1)
    same = _tensor(row), None if (weights == 1).all() else _tensor(weights)
    return [Dots(windows, offsets, *same) for offsets in a.unbind()]


def _plan_sums(arena: torch.Tensor, group: Group, work: Sequence[Sequence[Slice]]) -> Sequence[Sums]:
    """One per group: the pieces of all sites, one site after the other."""
    width = min(s.factors.grain for slices in work for s in slices)
    table = arena[: len(arena) // width * width].view(-1, width)
    b, places = np.array([[s.factors.b_offsets for s in slices] for slices in work]), _places(work[0])
    sites = [_enumerate(work[0], position, places) for position in range(len(group.out_features))]
    pieces = [
        _cut(samples, b[:, :, position] // width, out // width)
        for position, (samples, out) in enumerate(zip(sites, group.out_features, strict=True))
    ]
    sizes = np.concatenate([p.sizes for p in pieces])
    dtype = np.dtype(np.int32 if max(len(table), int(sizes.sum())) < 2**31 else np.int64)
    entries = _tensor(np.concatenate([p.entries for p in pieces], axis=1).astype(dtype))
    bags = _tensor((np.cumsum(sizes) - sizes).astype(dtype))
    samples = _tensor(np.concatenate([p.samples for p in pieces]))
    rows, counts = tuple(_as_slice(s.rows) for s in sites), tuple(len(p.sizes) for p in pieces)
    return [Sums(table, row, bags, samples, rows, counts) for row in entries.unbind()]


def _places(slices: Sequence[Slice]) -> list[int]:
    """Where each segment's h begins: those of dots come first."""
    order = sorted(range(len(slices)), key=lambda i: slices[i].way.shrink != DOTS)
    sizes = [(slices[i].end - slices[i].start) * slices[i].factors.rank for i in order]
    starts = dict(zip(order, accumulate(sizes, initial=0), strict=False))
    return [starts[i] for i in range(len(slices))]


def _enumerate(slices: Sequence[Slice], position: int, places: Sequence[int]) -> _Samples:
    pairs = sorted(
        (row, segment, s.factors.ranks[position], place + (row - s.start) * s.factors.rank)
        for segment, (s, place) in enumerate(zip(slices, places, strict=True))
        if s.factors.ranks[position]
        for row in range(s.start, s.end)
    )
    row, segment, ranks, place = np.array(pairs, dtype=np.int64).reshape(-1, 4).T
    place = place + np.array([s.factors.columns[position].start for s in slices])[segment]
    rows, first = np.unique(row, return_index=True)
    counts = np.add.reduceat(ranks, first) if len(rows) else ranks
    rank = ranges(ranks)
    return _Samples(np.repeat(segment, ranks), rank, np.repeat(place, ranks) + rank, rows, counts)


def _cut(samples: _Samples, offsets: Ints, pieces: int) -> _Pieces:
    """offsets: (groups, segments) of B, in pieces."""
    sizes = np.repeat(samples.counts, pieces)
    piece = np.repeat(np.tile(np.arange(pieces), len(samples.rows)), sizes)
    first = np.repeat(np.repeat(np.cumsum(samples.counts) - samples.counts, pieces), sizes)
    sample = first + ranges(sizes)
    entries = offsets[:, samples.segment[sample]] + (samples.rank[sample] * pieces + piece)
    return _Pieces(entries, sizes, samples.place[sample])


def _as_slice(rows: Ints) -> Rows | None:
    if not len(rows):
        return None
    low, high = int(rows[0]), int(rows[-1]) + 1
    return slice(low, high) if high - low == len(rows) else _tensor(rows)


def _tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
