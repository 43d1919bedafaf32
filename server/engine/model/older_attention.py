"""Paged attention for models of transformers' older classes, whose modules compute attention themselves."""

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionMaskInterface, PreTrainedModel

from ..private.older_attention_private import OLDER, Older, calls_the_interface, set_attention_implementation
from .attention import PagedAttention
from .errors import UnservableModel

_NAME = "peftserve_older"


def attend_in_older_classes(model: PreTrainedModel, attention: PagedAttention, positions: int) -> bool:
    """Let modules that compute attention themselves call ours. Returns whether the model has any.

    positions: of the longest sequence. Raises UnservableModel with the reason where a class cannot be served as it is
    configured.
    """
    if calls_the_interface(model):
        return False
    found = [(module, row) for module in model.modules() if (row := OLDER.get(_full_name(module))) is not None]
    biases: dict[Any, torch.Tensor] = {}  # of the whole model, made once
    for place, (module, row) in enumerate(found):
        if (reason := row.refusal(module)) is not None:
            raise UnservableModel(reason)
        if row.bias is not None and row.bias not in biases:
            biases[row.bias] = row.bias(model, positions).float().contiguous()
        _replace(module, row, attention, place, biases.get(row.bias))
    if found:
        AttentionMaskInterface.register(_NAME, _no_mask)
        set_attention_implementation(model, _NAME)
    return bool(found)


def _replace(module: Any, row: Older, attention: PagedAttention, place: int, bias: torch.Tensor | None) -> None:
    """Replace a module's own method. place: its index where it knows none itself, as in classes without a cache."""
    if not isinstance(getattr(module, "layer_idx", None), int):
        module.layer_idx = place

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None = None
    ) -> torch.Tensor:
        query, key = query.to(value.dtype), key.to(value.dtype)  # the type of the cache
        return attention(module, query, key, value, None, scale, window, bias=bias)[0]

    setattr(module, row.method, partial(row.run, module, attend))


def _full_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _no_mask(**asked: Any) -> torch.Tensor:
    """Stand in for a mask, which some models expect to be one; nobody reads it."""
    return torch.zeros(1, device=asked["device"])
