"""Short segments of all adapters in one call per product, where a product per adapter would be mostly call.

At one to a few rows per adapter (decode) a 16-bit GEMM call costs 20 µs before it reads a byte, and a step of 8
adapters makes thousands. Read as embedding bags, the factors need no copy, no padding and no mask: a row of A is an
entry to take the dot product with, a row of B an entry to add up, and every (row of x, row of A) pair is a sample.

    h[i] = x[row[i]] · arena[a[i] : a[i] + in_features]                        one call for all sites of the group
    y[m] += sum over samples i of row m: h[i] · arena[b[i] : b[i] + width]      one call per site

A row's sums do not depend on which other rows run beside it.
"""

from typing import NamedTuple

import torch

_NO_OFFSETS = torch.tensor([0])


class SiteBags(NamedTuple):
    """The samples [start, end) of the group belong to the site; `rows` of y change, a slice where they adjoin.

    entries: (pieces · samples,) int32 rows of `table`, the arena cut into (n, width); a row of B is `pieces` of them.
    bags: (pieces · rows,) int32, where each bag starts in `entries`.
    """

    start: int
    end: int
    table: torch.Tensor
    entries: torch.Tensor
    bags: torch.Tensor
    pieces: int
    rows: slice | torch.Tensor


class Bags(NamedTuple):
    """All samples of one group. windows: (numel, in_features) less a tail, overlapping views of the arena.

    a: (samples,) int64 offsets in the arena. rows: (samples,) int64 rows of x. weights: (samples,) fp32, None if all 1.
    """

    windows: torch.Tensor
    a: torch.Tensor
    rows: torch.Tensor
    weights: torch.Tensor | None
    sites: tuple[SiteBags | None, ...]

    def shrink(self, x: torch.Tensor) -> torch.Tensor:
        """x: (rows, in_features). Returns (samples,) in the arena's dtype; sums run in fp32."""
        h = _dots(x, self.windows, self.a, self.rows)
        return h if self.weights is None else h.mul_(self.weights)

    def expand_(self, h: torch.Tensor, position: int, y: torch.Tensor) -> None:
        """Add the site's delta to y, (rows, out_features)."""
        if (site := self.sites[position]) is None:
            return
        h = h[site.start : site.end]
        if site.pieces > 1:
            h = h.repeat(site.pieces)
        delta = _sums(site.table, site.entries, site.bags, h).view(site.pieces, -1, site.table.shape[1])
        if isinstance(site.rows, slice):
            # Piece by piece, y is (pieces, rows, width) with strides of its own: no transposed copy of delta.
            y[site.rows].view(-1, site.pieces, delta.shape[2]).transpose(0, 1).add_(delta)
        else:
            y.index_add_(0, site.rows, delta.transpose(0, 1).flatten(1))


def _dots(x: torch.Tensor, windows: torch.Tensor, entries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """x[rows[i]] · windows[entries[i]] for each i: the gradient of a bag's weights, which is these very products."""
    h: torch.Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x, windows, entries, _NO_OFFSETS, rows, 0
    )
    return h


def _sums(table: torch.Tensor, entries: torch.Tensor, bags: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of each bag's entries, (bags, width), without the records that a gradient would need."""
    out: torch.Tensor = torch.ops.aten._embedding_bag_forward_only(table, entries, bags, False, 0, False, weights)[0]
    return out
