"""On which device, and in which type, the base is loaded."""

import torch
from transformers import PreTrainedConfig

from ..private.torch_private import multiplies_bfloat16
from .errors import UnservableModel


def choose_device(name: str) -> torch.device:
    """Return the device that `--device` names; `auto` is a GPU if torch sees one. Raises UnservableModel."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UnservableModel("--device cuda was asked for, but torch sees no GPU; use --device cpu")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def choose_dtype(name: str, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """Return the type to load the weights in.

    `auto` is the checkpoint's, or float32 on CPUs that compute it slowly: all do in float16, and those without 16-bit
    products in bfloat16, where linears take four times as long.
    """
    dtype: torch.dtype
    if name != "auto":
        dtype = getattr(torch, name)
        return dtype
    stored = config.get_text_config().dtype or config.dtype or torch.float32
    dtype = getattr(torch, stored) if isinstance(stored, str) else stored
    return torch.float32 if device.type == "cpu" and _is_slow_on_cpu(dtype) else dtype


def _is_slow_on_cpu(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return torch.backends.mkldnn.is_available() and not multiplies_bfloat16()
    return dtype == torch.float16
