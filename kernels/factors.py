"""One slot's factors of one group, as views of the arena, made when the slot is attached so that no step makes them."""

from typing import NamedTuple

import torch

from .layout import Group, GroupLayout


class SiteFactors(NamedTuple):
    """Columns [start, end) of h belong to the site, whose b is (rank, out_features)."""

    start: int
    end: int
    b: torch.Tensor
    a_offset: int
    b_offset: int


class Factors(NamedTuple):
    """a: (in_features, sum of ranks), a transposed view unless `gather`. sites: None where the adapter has none.

    Offsets are in elements from the start of the arena.
    """

    a: torch.Tensor
    gather: bool
    sites: tuple[SiteFactors | None, ...]


class Slice(NamedTuple):
    """Rows [start, end) of the step go through `factors`, and their delta is multiplied by `weight`."""

    factors: Factors
    weight: float
    start: int
    end: int


def view_factors(arena: torch.Tensor, base: int, group: Group, layout: GroupLayout) -> Factors:
    rank, width = sum(layout.ranks), group.in_features
    a = arena[base + layout.a :][: rank * width]
    sites: list[SiteFactors | None] = []
    start = 0
    for r, b, out in zip(layout.ranks, layout.b, group.out_features, strict=True):
        offset = base + b
        view = arena[offset : offset + r * out].view(r, out)
        a_offset = base + layout.a + start * width
        sites.append(SiteFactors(start, start + r, view, a_offset, offset) if r else None)
        start += r
    return Factors(a.view(width, rank) if group.gather else a.view(rank, width).t(), group.gather, tuple(sites))
