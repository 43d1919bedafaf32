"""Short segments of all adapters in one call per product, where a product per adapter would be mostly call.

At one to a few rows per adapter (decode) a 16-bit GEMM call costs 20 µs before it reads a byte, and a step of 8
adapters makes thousands. Read as embedding bags, the factors need no copy, no padding and no mask: a row of A is an
entry to take the dot product with, a row of B an entry to add up, and every (row of x, row of A) pair is a sample.

    h[i] = x[row[i]] · arena[a[i] : a[i] + in_features]                        one call for all sites of the group
    y[m] += sum over samples i of row m: h[i] · arena[b[i] : b[i] + out_features]           one call for each site

A row's sums do not depend on which other rows run beside it.
"""

from typing import NamedTuple

import torch

_NO_OFFSETS = torch.tensor([0])


class SiteBags(NamedTuple):
    """One site's rows of y that change, a slice where they adjoin; each is as many bags as it has pieces.

    table: the arena cut into pieces, (n, width), of which a row of B is out_features / width.
    entries: (samples · pieces,) rows of `table`, by row of y, then piece. bags: where each bag starts in `entries`.
    samples: (samples · pieces,) int64, which sample weights each entry.
    """

    rows: slice | torch.Tensor
    table: torch.Tensor
    entries: torch.Tensor
    bags: torch.Tensor
    samples: torch.Tensor


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
        delta = _sums(site.table, site.entries, site.bags, h.index_select(0, site.samples)).view(-1, y.shape[1])
        if isinstance(site.rows, slice):
            y[site.rows].add_(delta)
        else:
            y.index_add_(0, site.rows, delta)


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
