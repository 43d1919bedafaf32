"""Comparison of a model's layers: alike ones compute the same but for their weights, so one trace serves them all."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..private.torch_private import MODULE_STATE

_PLAIN = (bool, int, float, str, type(None), tuple, list, dict, set, torch.dtype)
_OWN = ("layer_idx", "forward", *MODULE_STATE)  # of each layer its own


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Return whether all modules inside two layers are of the same classes, with the same settings and shapes.

    A setting that cannot be compared makes them different. A difference that only depends on a layer's index is not
    seen: whoever relies on this compares the result with the model's.
    """
    ours, theirs = list(one.named_modules()), list(other.named_modules())
    return len(ours) == len(theirs) and all(
        name == other_name and type(module) is type(other_module) and _same_settings(module, other_module)
        for (name, module), (other_name, other_module) in zip(ours, theirs, strict=True)
    )


def counterparts(one: nn.Module, other: nn.Module) -> Mapping[int, Any]:
    """Map the id of each module, parameter and buffer of `one` to what is in its place in `other`, an alike layer."""
    pairs = [*zip(_everything(one), _everything(other), strict=True)]
    return {id(ours): theirs for ours, theirs in pairs}


def _everything(layer: nn.Module) -> Iterator[Any]:
    yield from layer.modules()
    for module in layer.modules():
        yield from (tensor for _, tensor in _owned(module))


def _same_settings(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = vars(one), vars(other)
    return (
        ours.keys() == theirs.keys()
        and all(_same(ours[key], theirs[key]) for key in ours if key not in _OWN)
        and _shapes(one) == _shapes(other)
    )


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, _PLAIN) and bool(one == other))


def _shapes(module: nn.Module) -> list[Any]:
    return [(name, type(t), t.shape, t.stride(), t.dtype, t.device) for name, t in _owned(module)]


def _owned(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the module's own parameters and buffers by name; one that has two names comes twice."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)
