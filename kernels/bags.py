"""Short segments of all adapters in one call per product, where a product per adapter would be mostly call.

At one to a few rows per adapter (decode) a 16-bit GEMM call costs 20 µs before it reads a byte, and a step of 8
adapters makes thousands. Read as embedding bags, the factors need no copy, no padding and no mask: a row of A is an
entry to take the dot product with, a row of B an entry to add up, and every (row of x, row of A) pair is a sample.
Sums stay ahead of products for longer than dots do, so that segments between the two limits make h by products.

    h[i] = x[row[i]] · arena[a[i] : a[i] + in_features]                        one call for all sites of the group
    y[m] += sum over samples i of row m: h[i] · arena[b[i] : b[i] + out_features]           one call for each site

A row's sums do not depend on which other rows run beside it.
"""

from typing import NamedTuple

import torch

from .factors import Factors, Slice

_NO_OFFSETS = torch.tensor([0])


class SiteBags(NamedTuple):
    """One site's rows of y that change, a slice where they adjoin; each is as many bags as it has pieces.

    table: the arena cut into pieces, (n, width), of which a row of B is out_features / width.
    entries: (samples · pieces,) rows of `table`, by row of y, then piece. bags: where each bag starts in `entries`.
    samples: (samples · pieces,) int64, the sample of h that weights each entry.
    """

    rows: slice | torch.Tensor
    table: torch.Tensor
    entries: torch.Tensor
    bags: torch.Tensor
    samples: torch.Tensor


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


class Bags(NamedTuple):
    """One group's short segments. h: first the samples of `dots`, then each of `products`, row by row."""

    dots: Dots | None
    products: tuple[Slice, ...]
    sites: tuple[SiteBags | None, ...]

    def shrink(self, x: torch.Tensor) -> torch.Tensor:
        """x: (rows, in_features). Returns (samples,) in the arena's dtype."""
        dots = [] if self.dots is None else [self.dots.shrink(x)]
        parts = dots + [s.shrink(x).flatten() for s in self.products]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def expand_(self, h: torch.Tensor, position: int, y: torch.Tensor) -> None:
        """Add the site's delta to y, (rows, out_features)."""
        if (site := self.sites[position]) is None:
            return
        delta = _sums(site.table, site.entries, site.bags, h.index_select(0, site.samples)).view(-1, y.shape[1])
        if isinstance(site.rows, slice):
            y[site.rows].add_(delta)
        else:
            y.index_add_(0, site.rows, delta)


def most_dots(factors: Factors) -> int:
    """How many rows a segment may have before a product of its own makes its h sooner than dot products do.

    Dot products cost as much for each row; a product hardly more for the first ten, but 16-bit calls are dear. These
    and the numbers below were measured on an AVX-512 core with 16-bit dot products, torch 2.13.
    """
    free, call = (1.7, 170_000) if factors.a.element_size() == 2 else (5, 20_000)
    return int(free + call / factors.a.numel()) if most_sums(factors) else 0


def most_sums(factors: Factors) -> int:
    """The same for what it adds to y. None where rows of B have no piece of a length worth a call to memory."""
    if factors.a.device.type != "cpu" or factors.gather or factors.grain < 16:
        return 0
    free, call = (4, 360_000) if factors.a.element_size() == 2 else (7, 20_000)
    calls = sum(rank > 0 for rank in factors.ranks)
    return int(free + calls * call / sum(b.numel() for b in factors.b))


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
