"""A twin of a model: new modules over the very same tensors, to be changed or run on another thread.

What modules carry beside their class (a `forward` or hooks of their own, as packages for quantised weights give them)
is copied, too; `carries_extras` says whether there is any, and so whether the copy must be tried before it is trusted.
"""

import copy
import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from ..private.torch_private import has_hooks

_Model = TypeVar("_Model", bound=nn.Module)
_DEPTH = 4  # of nested objects where a module keeps tensors: bitsandbytes has them in a state, HQQ in a dictionary


def twin(model: _Model) -> _Model:
    """Return a copy of a model whose modules are new and whose tensors are the model's own.

    To be called before the model's modules are wrapped for serving. Raises what a module that cannot be copied raises.
    """
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors_of(model)})
    for module in copied.modules():
        if not isinstance(vars(module).get("forward"), types.MethodType | functools.partial):
            vars(module).pop("forward", None)  # a closure over the original, which the copy must not run
    return copied


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    """Return all tensors that a model's modules hold: parameters, buffers, and what they keep aside, as scales are."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        tensors += _tensors_in(vars(module), _DEPTH)
    return tensors


def carries_extras(model: nn.Module) -> bool:
    """Return whether any module has a `forward` or hooks of its own."""
    return any("forward" in vars(module) or has_hooks(module) for module in model.modules())


def _tensors_in(value: Any, depth: int) -> Iterator[torch.Tensor]:
    """Iterate over tensors that a module keeps neither as parameters nor as buffers, or beside a parameter."""
    if isinstance(value, torch.Tensor):
        yield value
    if depth and not isinstance(value, nn.Module | type):
        for part in _parts_of(value):
            yield from _tensors_in(part, depth - 1)


def _parts_of(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        return value
    return (value if isinstance(value, dict) else getattr(value, "__dict__", {})).values()
