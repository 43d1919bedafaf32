"""Linear layers on a CPU with weights laid out once for oneDNN's kernels.

At the few rows of a decode step the plain layout costs as much to rearrange as to multiply. The packed copy is beside
the plain weight, which stays what it was: compilers of adapters read it, and nothing ever writes it.
"""

import platform
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from peftserve.adapters.peft.plain import is_plain_linear

from ..private.torch_private import linear_pointwise, multiplies_bfloat16, packed_weight

DECODE_ROWS = 16  # the number of rows that the layout is chosen for; others run too
SMALL_WEIGHT = 1 << 18  # elements of a float32 weight that is rearranged in no time


class _Gain(NamedTuple):
    """The numbers of rows for which a packed weight is faster: first to last, or any from the first on."""

    first: int
    last: int | None

    def covers(self, rows: int) -> bool:
        return self.first <= rows and (self.last is None or rows <= self.last)


_BFLOAT16 = _Gain(1, None)
_FLOAT32 = _Gain(2, 96)
"""Measured with AVX2, 576 to 8,192 wide: 1.1 to 3.4 times as fast, most at 3 and 4 rows. One row is MKL's
matrix-vector product, and beyond a hundred rows what is rearranged is little beside what is multiplied: there the
plain product is 1.0 to 1.25 times as fast."""


def pack_linears(modules: Iterable[nn.Module], spare_bytes: int) -> int:
    """Give every plain nn.Linear of these a packed weight, if all of them take at most `spare_bytes`.

    Returns the bytes taken: 0 where the device, the type or the processor would gain nothing, or memory is short.
    """
    linears = [(m, gain) for m in modules if is_plain_linear(m) and (gain := _gain(m.weight)) is not None]
    num_bytes = sum(linear.weight.nbytes for linear, _ in linears)
    if num_bytes > spare_bytes:
        return 0
    for linear, gain in linears:
        linear.forward = _packed_forward(linear, gain)  # type: ignore[method-assign, assignment]
    return num_bytes


def _gain(weight: torch.Tensor) -> _Gain | None:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    if weight.dtype == torch.bfloat16:
        return _BFLOAT16 if multiplies_bfloat16() else None
    large = weight.dtype == torch.float32 and weight.numel() >= SMALL_WEIGHT
    return _FLOAT32 if large and platform.machine() in ("x86_64", "AMD64") else None


def _packed_forward(linear: nn.Linear, gain: _Gain) -> Callable[[torch.Tensor], torch.Tensor]:
    packed = packed_weight(linear.weight.detach(), DECODE_ROWS)
    weight, bias, width = linear.weight, linear.bias, linear.in_features
    multiply = linear_pointwise()

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not gain.covers(x.numel() // width):
            return F.linear(x, weight, bias)
        return multiply(x, packed, bias, "none", [], "")

    return forward
