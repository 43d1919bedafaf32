"""The matrix of a quantised linear as the package that quantised it reads its codes: one function for each format.

What a function returns is a claim, which `plain.py` checks against what the module gives. So a format of a name that is
not here, or of a layout that has changed since, is not read wrongly but by the module's outputs. No package is imported
before a module of its own is at hand.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

Dequantise = Callable[[Any], torch.Tensor]
"""From a module to its matrix, (out_features, in_features) or the other way round, of a floating type."""


def dequantiser(module: nn.Module) -> Dequantise | None:
    """Return the function for a module's class or one that it is derived from; None for an unknown one."""
    names = (kind.__name__ for kind in type(module).__mro__)
    return next((DEQUANTISE[name] for name in names if name in DEQUANTISE), None)


def is_quantised_again(module: nn.Module) -> bool:
    """Return whether PEFT, where it changes the weight of such a module, quantises the changed weight again.

    It does so for the parameters of bitsandbytes alone: what it then computes is not what the changed weight would.
    """
    return type(getattr(module, "weight", None)).__name__ in ("Params4bit", "Int8Params")


def _bitsandbytes_4bit(module: Any) -> torch.Tensor:
    """Look the 4-bit codes up and multiply by the scale of their block, in the type of the quantised weight."""
    functional = import_module("bitsandbytes.functional")
    matrix: torch.Tensor = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    return matrix


def _bitsandbytes_8bit(module: Any) -> torch.Tensor:
    """Multiply int8 codes by the scale of their row, in float32. The first product moves both to the state."""
    functional = import_module("bitsandbytes.functional")
    state = module.state
    codes, scales = (module.weight.data, module.weight.SCB) if state.CB is None else (state.CB, state.SCB)
    matrix: torch.Tensor = functional.int8_vectorwise_dequant(codes, scales.to(codes.device))
    return matrix


def _blocks_of_fp8(module: Any) -> torch.Tensor:
    """Multiply float8 codes by the scale of their tile, (out_features / rows, in_features / columns), in float32."""
    codes, scales = module.weight, module.weight_scale_inv.float()
    if scales.dim() == 2:
        rows, columns = module.block_size
        scales = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[: codes.shape[0], : codes.shape[1]]
    matrix: torch.Tensor = codes.float() * scales
    return matrix


def _own(method: str) -> Dequantise:
    """Return what calls a method of the module."""
    return lambda module: getattr(module, method)()


DEQUANTISE: Mapping[str, Dequantise] = {
    "Linear4bit": _bitsandbytes_4bit,
    "Linear8bitLt": _bitsandbytes_8bit,
    "FP8Linear": _blocks_of_fp8,
    "HQQLinear": _own("dequantize"),
    "BaseQuantLinear": _own("dequantize_weight"),  # gptqmodel's, whose kernels for speed have no such method
}
