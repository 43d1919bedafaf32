"""One adapter's factors of one group, as views of the arena, made when it is loaded so that no step makes them."""

from typing import NamedTuple

import numpy as np
import torch

from ...integers import Ints
from ..layout import Group, GroupLayout


class Factors(NamedTuple):
    """Views of one adapter's factors of one group.

    a: (in_features, sum of ranks), a transposed view unless `gather`. b: (rank, out_features) for each site, empty
    where the adapter does not touch it. table: int64, read by the compiled loop (`cpp/tables.py`), at `address`.
    """

    gather: bool
    a: torch.Tensor
    b: tuple[torch.Tensor, ...]
    ranks: tuple[int, ...]
    table: Ints
    address: int

    @property
    def rank(self) -> int:
        return self.a.shape[1]


def view_factors(arena: torch.Tensor, base: int, group: Group, layout: GroupLayout) -> Factors:
    """Make the views of the blob at element `base` of the arena."""
    rank, width = layout.rank, group.in_features
    a = (width, rank), ((rank, 1) if group.gather else (1, width)), base + layout.a
    offsets = [base + b if r else 0 for b, r in zip(layout.b, layout.ranks, strict=True)]
    b = [((r, out), (out, 1), at) for r, out, at in zip(layout.ranks, group.out_features, offsets, strict=True)]
    table = _table(layout, arena.data_ptr() + arena.itemsize * np.array([base + layout.a, *offsets]))
    return Factors(
        gather=group.gather,
        a=arena.as_strided(*a),
        b=tuple(arena.as_strided(*place) for place in b),
        ranks=layout.ranks,
        table=table,
        address=table.ctypes.data,
    )


def _table(layout: GroupLayout, addresses: Ints) -> Ints:
    """Return the loop's table. addresses: of A and of each site's B."""
    columns = np.cumsum([0, *layout.ranks[:-1]])
    sites = np.stack([layout.ranks, columns, addresses[1:]], 1)
    return np.concatenate([[addresses[0], layout.rank], sites.flatten()]).astype(np.int64)
