"""One adapter's factors of one group, as views of the arena, made when it is loaded so that no step makes them."""

import math
from typing import NamedTuple

import torch

from ..layout import Group, GroupLayout


class Factors(NamedTuple):
    """a: (in_features, sum of ranks), a transposed view unless `gather`. b: (rank, out_features) per site.

    b_columns: b transposed, views. columns: of h, one slice per site. a_offset, b_offsets: from the arena's start.
    At a site that the adapter leaves alone, the rank is 0, the views are empty and the offset is 0.
    """

    gather: bool
    a: torch.Tensor
    b: tuple[torch.Tensor, ...]
    b_columns: tuple[torch.Tensor, ...]
    ranks: tuple[int, ...]
    columns: tuple[slice, ...]
    a_offset: int
    b_offsets: tuple[int, ...]

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    @property
    def grain(self) -> int:
        """The longest run of 2^n elements of which all rows of b are whole multiples, wherever they start."""
        common = math.gcd(*self.b_offsets, *(b.shape[1] for b, rank in zip(self.b, self.ranks, strict=True) if rank))
        return common & -common


def view_factors(arena: torch.Tensor, base: int, group: Group, layout: GroupLayout) -> Factors:
    rank, width = layout.rank, group.in_features
    a = (width, rank), ((rank, 1) if group.gather else (1, width)), base + layout.a
    ends = [sum(layout.ranks[: i + 1]) for i in range(len(layout.ranks))]
    starts = [end - r for end, r in zip(ends, layout.ranks, strict=True)]
    b_offsets = [base + b if r else 0 for b, r in zip(layout.b, layout.ranks, strict=True)]
    b = [((r, out), (out, 1), at) for r, out, at in zip(layout.ranks, group.out_features, b_offsets, strict=True)]
    return Factors(
        gather=group.gather,
        a=arena.as_strided(*a),
        b=tuple(arena.as_strided(*place) for place in b),
        b_columns=tuple(arena.as_strided(shape[::-1], strides[::-1], at) for shape, strides, at in b),
        ranks=layout.ranks,
        columns=tuple(slice(start, end) for start, end in zip(starts, ends, strict=True)),
        a_offset=base + layout.a,
        b_offsets=tuple(b_offsets),
    )
