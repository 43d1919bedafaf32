"""Lays out the samples of the short segments (see `bags.py`). Layers of one shape are planned together."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .bags import Bags, Dots, SiteBags
from .factors import Slice
from .layout import Group

Ints = npt.NDArray[np.int64]


class _Samples(NamedTuple):
    """The samples of one site, by row, then segment, then rank: so a row that several segments cover is one bag.

    segment, rank: (samples,). place: (samples,) where in h. rows: (distinct rows,), ascending; counts: samples of each.
    """

    segment: Ints
    rank: Ints
    place: Ints
    rows: Ints
    counts: Ints


def plan_bags(arena: torch.Tensor, groups: Sequence[Group], work: Mapping[int, Sequence[Slice]]) -> dict[int, Bags]:
    """work: the short segments of each group that has any."""
    alike: dict[tuple[Group, object], list[int]] = {}
    for index, slices in work.items():
        shape = tuple((s.start, s.end, s.weight, s.dots, s.factors.ranks) for s in slices)
        alike.setdefault((groups[index], shape), []).append(index)
    plans: dict[int, Bags] = {}
    for (group, _), members in alike.items():
        bags = _plan_alike(arena, group, [work[index] for index in members])
        plans.update(zip(members, bags, strict=True))
    return plans


def _plan_alike(arena: torch.Tensor, group: Group, work: Sequence[Sequence[Slice]]) -> list[Bags]:
    """work: (groups, segments), whose members differ only in where their factors lie."""
    dots = _plan_dots(arena, group, work)
    places = _places(work[0])
    b = np.array([[s.factors.b_offsets for s in slices] for slices in work])
    sites = [
        _plan_site(arena, out, b[:, :, position], _enumerate(work[0], position, places))
        for position, out in enumerate(group.out_features)
    ]
    products = [tuple(s for s in slices if not s.dots) for slices in work]
    return [Bags(*parts) for parts in zip(dots, products, zip(*sites, strict=True), strict=True)]


def _plan_dots(arena: torch.Tensor, group: Group, work: Sequence[Sequence[Slice]]) -> Sequence[Dots | None]:
    """One per group, None where all segments make h by products."""
    chosen = [i for i, s in enumerate(work[0]) if s.dots]
    if not chosen:
        return [None] * len(work)
    row = np.concatenate([np.arange(work[0][i].start, work[0][i].end) for i in chosen])
    segment = np.repeat(chosen, [work[0][i].end - work[0][i].start for i in chosen])
    sizes = np.array([sum(s.factors.ranks) for s in work[0]])[segment]
    row, segment, rank = np.repeat(row, sizes), np.repeat(segment, sizes), _ranges(sizes)
    base = np.array([[s.factors.a_offset for s in slices] for slices in work])
    a = _tensor(base[:, segment] + rank * group.in_features)
    weights = np.array([s.weight for s in work[0]], dtype=np.float32)[segment]
    windows = arena.unfold(0, group.in_features, 1)
    same = _tensor(row), None if (weights == 1).all() else _tensor(weights)
    return [Dots(windows, offsets, *same) for offsets in a.unbind()]


def _places(slices: Sequence[Slice]) -> list[int]:
    """Where each segment's h begins: those of dots come first."""
    places, total = [0] * len(slices), 0
    for index in sorted(range(len(slices)), key=lambda i: not slices[i].dots):
        places[index] = total
        total += (slices[index].end - slices[index].start) * sum(slices[index].factors.ranks)
    return places


def _enumerate(slices: Sequence[Slice], position: int, places: Sequence[int]) -> _Samples:
    pairs = sorted(
        (row, segment, s.factors.ranks[position], place + (row - s.start) * sum(s.factors.ranks))
        for segment, (s, place) in enumerate(zip(slices, places, strict=True))
        if s.factors.ranks[position]
        for row in range(s.start, s.end)
    )
    row, segment, ranks, place = np.array(pairs, dtype=np.int64).reshape(-1, 4).T
    place = place + np.array([s.factors.columns[position].start for s in slices])[segment]
    rows, first = np.unique(row, return_index=True)
    counts = np.add.reduceat(ranks, first) if len(rows) else ranks
    rank = _ranges(ranks)
    return _Samples(np.repeat(segment, ranks), rank, np.repeat(place, ranks) + rank, rows, counts)


def _plan_site(arena: torch.Tensor, out: int, offsets: Ints, samples: _Samples) -> Sequence[SiteBags | None]:
    """offsets: (groups, segments) of B. One per group, None where no segment touches the site."""
    if not len(samples.rows):
        return [None] * len(offsets)
    width = math.gcd(out, int(np.gcd.reduce(offsets, axis=None)))
    pieces = out // width
    table = arena[: len(arena) // width * width].view(-1, width)
    dtype = np.dtype(np.int32 if len(table) < 2**31 else np.int64)
    sizes = np.repeat(samples.counts, pieces)
    piece = np.repeat(np.tile(np.arange(pieces), len(samples.rows)), sizes)
    first = np.repeat(np.repeat(np.cumsum(samples.counts) - samples.counts, pieces), sizes)
    sample = first + _ranges(sizes)
    entries: Ints = (offsets // width).astype(dtype)[:, samples.segment[sample]]
    entries += (samples.rank[sample] * pieces + piece).astype(dtype)
    bags = _tensor((np.cumsum(sizes) - sizes).astype(dtype))
    rows, weights = _as_slice(samples.rows), _tensor(samples.place[sample])
    return [SiteBags(rows, table, row, bags, weights) for row in _tensor(entries).unbind()]


def _ranges(sizes: Ints) -> Ints:
    """0 to size - 1 for each size, one after the other."""
    total = int(sizes.sum())
    return np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _as_slice(rows: Ints) -> slice | torch.Tensor:
    low, high = int(rows[0]), int(rows[-1]) + 1
    return slice(low, high) if high - low == len(rows) else _tensor(rows)


def _tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
