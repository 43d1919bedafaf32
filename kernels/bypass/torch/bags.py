"""Short segments of all adapters in one call per product, where a product per adapter would be mostly call.

Read as embedding bags, the factors need no copy, no padding and no mask: a row of A is an entry to take the dot product
with, a row of B an entry to add up, and every (row of x, row of A) pair is a sample. Sums pay for more rows than dots
do, so that some segments whose deltas are summed here make their h by a product of their own.

    h[i] = x[row[i]] · arena[a[i] : a[i] + in_features]                        one call for all sites of the group
    y[m] += sum over samples i of row m: h[i] · arena[b[i] : b[i] + out_features]            one call for all of them

A row's sums do not depend on which other rows run beside it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .packed import Rows, add_rows_
from .slices import Slice

_NO_OFFSETS = torch.tensor([0])


class Dots(NamedTuple):
    """The samples of h that are dot products.

    windows: (numel, in_features) less a tail, overlapping views of the arena. a: (samples,) int64 offsets in it.
    rows: (samples,) int64 rows of x. weights: (samples,) fp32, None if all 1.
    """

    windows: torch.Tensor
    a: torch.Tensor
    rows: torch.Tensor
    weights: torch.Tensor | None

    def shrink(self, x: torch.Tensor) -> torch.Tensor:
        """x: (rows, in_features). Returns (samples,) in the arena's dtype; sums run in fp32."""
        h = _dots(x, self.windows, self.a, self.rows)
        return h if self.weights is None else h.mul_(self.weights)


class Sums(NamedTuple):
    """The deltas of all sites, one site after the other, each row in pieces, of which each is a bag.

    table: the arena cut into pieces, (n, width), of which a row of B is out_features / width.
    entries: (samples · pieces,) rows of `table`, by site, row of y, then piece. bags: where each begins in `entries`.
    samples: (samples · pieces,) int64, the sample of h that weights each entry.
    rows: for each site those of y that change, None if none does. counts: each site's number of bags.
    """

    table: torch.Tensor
    entries: torch.Tensor
    bags: torch.Tensor
    samples: torch.Tensor
    rows: tuple[Rows | None, ...]
    counts: tuple[int, ...]

    def expand_(self, h: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        deltas = _sums(self.table, self.entries, self.bags, h.index_select(0, self.samples))
        parts = deltas.split_with_sizes(self.counts) if len(self.counts) > 1 else (deltas,)
        for delta, rows, y in zip(parts, self.rows, outputs, strict=True):
            if rows is not None and y is not None:
                add_rows_(y, rows, delta.view(-1, y.shape[1]))


class Bags(NamedTuple):
    """One group's short segments. h: first the samples of `dots`, then each of `products`, row by row."""

    dots: Dots | None
    products: tuple[Slice, ...]
    sums: Sums

    def add_(self, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        self.sums.expand_(self.shrink(x), outputs)

    def shrink(self, x: torch.Tensor) -> torch.Tensor:
        """x: (rows, in_features). Returns (samples,) in the arena's dtype."""
        dots = [] if self.dots is None else [self.dots.shrink(x)]
        parts = dots + [s.shrink(x).flatten().to(x.dtype) for s in self.products]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _dots(x: torch.Tensor, windows: torch.Tensor, entries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """x[rows[i]] · windows[entries[i]] for each i: the gradient of a bag's weights, which is these very products."""
    h: torch.Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x, windows, entries, _NO_OFFSETS, rows, 0
    )
    return h


def _sums(table: torch.Tensor, entries: torch.Tensor, bags: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of each bag's entries, (bags, width), without the records that a gradient would need."""
    out: torch.Tensor = torch._embedding_bag_forward_only(table, entries, bags, False, 0, False, weights)[0]
    return out
