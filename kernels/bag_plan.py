"""Lays out the samples of the short segments (see `bags.py`). Layers of one shape are planned together."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .bags import Bags, SiteBags
from .factors import Slice
from .layout import Group

Ints = npt.NDArray[np.int64]


class _Samples(NamedTuple):
    """The samples of one site, by row, then segment, then rank: so a row that several segments cover is one bag.

    segment, row, rank: (samples,). rows: (distinct rows,), ascending; counts: the samples of each.
    """

    segment: Ints
    row: Ints
    rank: Ints
    rows: Ints
    counts: Ints


def plan_bags(arena: torch.Tensor, groups: Sequence[Group], work: Mapping[int, Sequence[Slice]]) -> dict[int, Bags]:
    """work: the short segments of each group that has any."""
    alike: dict[tuple[Group, object], list[int]] = {}
    for index, slices in work.items():
        shape = tuple((s.start, s.end, s.weight, s.factors.ranks) for s in slices)
        alike.setdefault((groups[index], shape), []).append(index)
    plans: dict[int, Bags] = {}
    for (group, _), members in alike.items():
        bags = _plan_alike(arena, group, [work[index] for index in members])
        plans.update(zip(members, bags, strict=True))
    return plans


def _plan_alike(arena: torch.Tensor, group: Group, work: Sequence[Sequence[Slice]]) -> list[Bags]:
    """work: (groups, segments), whose members differ only in where their factors lie."""
    sites = [_enumerate(work[0], position) for position in range(len(group.out_features))]
    a = np.array([[s.factors.a_offsets for s in slices] for slices in work])
    b = np.array([[s.factors.b_offsets for s in slices] for slices in work])
    a_rows = [a[:, s.segment, p] + s.rank * group.in_features for p, s in enumerate(sites)]
    weights = np.array([s.weight for s in work[0]], dtype=np.float32)
    sampled = None if (weights == 1).all() else _tensor(weights[np.concatenate([s.segment for s in sites])])
    starts = np.cumsum([0, *(len(s.row) for s in sites)]).tolist()
    site_bags = [
        _plan_site(arena, group.out_features[p], b[:, :, p], samples, start)
        for p, (samples, start) in enumerate(zip(sites, starts, strict=False))
    ]
    windows = arena.unfold(0, group.in_features, 1)
    rows = _tensor(np.concatenate([s.row for s in sites]))
    by_group = zip(_tensor(np.concatenate(a_rows, axis=1)).unbind(), zip(*site_bags, strict=True), strict=True)
    return [Bags(windows, offsets, rows, sampled, bags) for offsets, bags in by_group]


def _enumerate(slices: Sequence[Slice], position: int) -> _Samples:
    pairs = sorted(
        (row, segment, s.factors.ranks[position])
        for segment, s in enumerate(slices)
        if s.factors.ranks[position]
        for row in range(s.start, s.end)
    )
    row, segment, rank = np.array(pairs, dtype=np.int64).reshape(-1, 3).T
    rows, first = np.unique(row, return_index=True)
    counts = np.add.reduceat(rank, first) if len(rows) else rank
    return _Samples(np.repeat(segment, rank), np.repeat(row, rank), _ranges(rank), rows, counts)


def _plan_site(
    arena: torch.Tensor, out: int, offsets: Ints, samples: _Samples, start: int
) -> Sequence[SiteBags | None]:
    """offsets: (groups, segments) of B. start: the site's first sample. One per group, None where there is no row."""
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
    rows, weights = _as_slice(samples.rows), _tensor(sample + start)
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
