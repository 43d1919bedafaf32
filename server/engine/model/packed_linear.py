"""Linear layers of a bfloat16 model on a CPU, with weights laid out once for oneDNN's kernels.

At the few rows of a decode step the plain layout costs as much to rearrange as to multiply. The packed copy is beside
the plain weight, which stays what it was: compilers of adapters read it, and nothing ever writes it.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

DECODE_ROWS = 16  # the number of rows that the layout is chosen for; others run too


def pack_linears(modules: Iterable[nn.Module], spare_bytes: int) -> int:
    """Give every plain nn.Linear of these a packed weight, if all of them take at most `spare_bytes`.

    Returns the bytes taken: 0 where the device, the type or the processor would gain nothing, or memory is short.
    """
    linears = [module for module in modules if type(module) is nn.Linear and _gains(module.weight)]
    num_bytes = sum(linear.weight.nbytes for linear in linears)
    if num_bytes > spare_bytes:
        return 0
    for linear in linears:
        linear.forward = _packed_forward(linear)  # type: ignore[method-assign, assignment]
    return num_bytes


def _gains(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed_forward(linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), DECODE_ROWS)
    bias = linear.bias
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def forward(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = multiply(x, packed, bias, "none", [], "")
        return y

    return forward
