"""Parts of PEFT that adapters/ uses beyond its documentation. Only `adapters/peft/probe.py` imports PEFT itself."""

from collections.abc import Mapping
from typing import Any

_LAYER = "peft.tuners.frod.layer.FrodLayer"

NAMES: Mapping[str, str] = {
    f"{_LAYER}.frod_V": (
        "The basis of a FRoD layer, as the checkpoint has it (`solve_frod_again`). It and the two names below can go "
        "once PEFT computes U of a loaded V by itself."
    ),
    f"{_LAYER}.frod_U": "What the layer multiplies by beside V, and no checkpoint holds.",
    f"{_LAYER}._calculate_frod_u_and_lambda": "U of V and the base's weight, a least-squares solution.",
}


def solve_frod_again(layer: Any) -> None:
    """Compute the U of a FRoD layer from the V of the checkpoint, in place.

    PEFT computes U at load from a V that it decomposes again, which on another machine, or with another number of
    threads, is another basis than the one that was trained.
    """
    for adapter, v in layer.frod_V.items():
        layer.frod_U[adapter], _ = layer._calculate_frod_u_and_lambda(v, layer.get_base_layer().weight)
