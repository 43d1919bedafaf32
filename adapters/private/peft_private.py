"""Parts of PEFT that adapters/ uses beyond its documentation. Only `adapters/peft/probe.py` imports PEFT itself."""

from collections.abc import Mapping
from typing import Any

import torch

_LAYER = "peft.tuners.frod.layer.FrodLayer"

NAMES: Mapping[str, str] = {
    f"{_LAYER}.frod_V": (
        "The basis of a FRoD layer, as the checkpoint has it (`solve_frod_again`). It and the names below can go "
        "once PEFT computes U of a loaded V by itself."
    ),
    f"{_LAYER}.frod_lambda_l": "What is trained beside V and U; all four are rounded to the type of the activations.",
    f"{_LAYER}.frod_lambda_s_values": "The same, away from the diagonal.",
    f"{_LAYER}.frod_U": "What the layer multiplies by beside V, and no checkpoint holds.",
    f"{_LAYER}._calculate_frod_u_and_lambda": "U of V and the base's weight, a least-squares solution.",
}


def solve_frod_again(layer: Any, dtype: torch.dtype) -> None:
    """Compute the U of a FRoD layer from the V of the checkpoint, in place, and round all factors as PEFT rounds them.

    PEFT computes U at load from a V that it decomposes again, which on another machine, or with another number of
    threads, is another basis than the one that was trained. dtype: of the activations, in which PEFT has the factors:
    U has to be that of the rounded V, since it takes the place of the base's weight.
    """
    for adapter, v in list(layer.frod_V.items()):
        layer.frod_V[adapter] = v.to(dtype).float()
        u, _ = layer._calculate_frod_u_and_lambda(layer.frod_V[adapter], layer.get_base_layer().weight)
        layer.frod_U[adapter] = u.to(dtype).float()
        for factor in (layer.frod_lambda_l[adapter], layer.frod_lambda_s_values[adapter]):
            factor.data = factor.data.to(dtype).float()
