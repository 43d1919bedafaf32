"""The two products of one segment, in every way that may be the quickest on some CPU.

    h = x Aᵀ   x: (rows, in_features), a = Aᵀ: (in_features, rank)              a shrink
    y += h B   h: (rows, rank), b = B: (rank, out_features), y in place          an expand

Which way is quickest depends on the machine, the dtype and the sizes: a CPU without 16-bit products multiplies 16-bit
matrices one element after the other, and one that has them pays 20 µs a call. Sums run in fp32 in all of them. `wide`
leaves h in fp32, `plain` in the dtype of the factors.
"""

from collections.abc import Callable, Mapping

import torch

Shrink = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Expand = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def wide_shrink(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return torch.mm(x.float(), a.float())


def plain_expand_(y: torch.Tensor, h: torch.Tensor, b: torch.Tensor) -> None:
    y.addmm_(h.to(b.dtype), b)


def wide_expand_(y: torch.Tensor, h: torch.Tensor, b: torch.Tensor) -> None:
    y.add_(torch.mm(h.float(), b.float()))


PLAIN, WIDE = "plain", "wide"
SHRINKS: Mapping[str, Shrink] = {PLAIN: torch.mm, WIDE: wide_shrink}
EXPANDS: Mapping[str, Expand] = {PLAIN: plain_expand_, WIDE: wide_expand_}
