"""Lays out the samples of the short segments (see `bags.py`). Layers of one shape are planned together."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from .bags import Bags, SiteBags
from .factors import Slice
from .layout import Group


class _Samples(NamedTuple):
    """The samples of one site, by row, then segment, then rank: so a row that several segments cover is one bag.

    segment, row, rank: (samples,) int64. rows: (distinct rows,), ascending; first: each one's first sample.
    """

    segment: torch.Tensor
    row: torch.Tensor
    rank: torch.Tensor
    rows: torch.Tensor
    first: torch.Tensor


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
    a = torch.cat([_a_offsets(group, work, p, s) for p, s in enumerate(sites)], dim=1)
    rows = torch.cat([s.row for s in sites])
    weights = torch.tensor([s.weight for s in work[0]])
    sampled = None if bool((weights == 1).all()) else weights[torch.cat([s.segment for s in sites])]
    start, per_site = 0, []
    for position, samples in enumerate(sites):
        per_site.append(_plan_site(arena, group.out_features[position], work, position, samples, start))
        start += len(samples.row)
    windows = arena.unfold(0, group.in_features, 1)
    by_group = zip(a.unbind(), zip(*per_site, strict=True), strict=True)
    return [Bags(windows, offsets, rows, sampled, bags) for offsets, bags in by_group]


def _enumerate(slices: Sequence[Slice], position: int) -> _Samples:
    pairs = sorted(
        (row, segment, s.factors.ranks[position])
        for segment, s in enumerate(slices)
        if s.factors.ranks[position]
        for row in range(s.start, s.end)
    )
    row, segment, rank = torch.tensor(pairs, dtype=torch.int64).view(-1, 3).unbind(1)
    first = rank.cumsum(0) - rank
    pair = torch.repeat_interleave(rank)
    is_new = torch.ones_like(row, dtype=torch.bool)
    is_new[1:] = row[1:] != row[:-1]
    return _Samples(segment[pair], row[pair], torch.arange(len(pair)) - first[pair], row[is_new], first[is_new])


def _a_offsets(group: Group, work: Sequence[Sequence[Slice]], position: int, samples: _Samples) -> torch.Tensor:
    """(groups, samples) int64."""
    base = torch.tensor([[s.factors.a_offsets[position] for s in slices] for slices in work])
    return base.index_select(1, samples.segment).add_(samples.rank * group.in_features)


def _plan_site(
    arena: torch.Tensor, out: int, work: Sequence[Sequence[Slice]], position: int, samples: _Samples, start: int
) -> Sequence[SiteBags | None]:
    """One entry per group, or None for each if no segment touches the site."""
    if not len(samples.row):
        return [None] * len(work)
    offsets = [[s.factors.b_offsets[position] for s in slices] for slices in work]
    width = math.gcd(out, *itertools.chain.from_iterable(offsets))
    table = arena[: len(arena) // width * width].view(-1, width)
    dtype = torch.int32 if len(table) < 2**31 else torch.int64
    piece = torch.arange(out // width, dtype=dtype)[:, None]
    base = torch.tensor(offsets).div_(width, rounding_mode="floor").to(dtype)
    index = base.index_select(1, samples.segment) + (samples.rank * len(piece)).to(dtype)
    index = (index[:, None] + piece).flatten(1)
    bags = (samples.first.to(dtype) + piece * len(samples.row)).flatten()
    rows, end = _as_slice(samples.rows), start + len(samples.row)
    return [SiteBags(start, end, table, row, bags, len(piece), rows) for row in index.unbind()]


def _as_slice(rows: torch.Tensor) -> slice | torch.Tensor:
    low, high = int(rows[0]), int(rows[-1]) + 1
    return slice(low, high) if high - low == len(rows) else rows
