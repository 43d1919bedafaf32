"""The positions of a step's rows, for decoders that count them by themselves: of each sequence, not of the whole step.

Those of BART's family take no positions. They count rows from the length of their cache on, and hand what they counted
to the embedding of positions, whose input is replaced here.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_INPUT = "position_ids"

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def give_positions(model: nn.Module) -> None:
    """Let the embeddings of positions of a model that takes no positions read those that it is called with anyway.

    Does nothing to other models.
    """
    if _takes(model):
        return
    readers = [module for module in model.modules() if isinstance(module, nn.Embedding) and _takes(module)]
    if not readers:
        return
    given = list[torch.Tensor]()  # of the pass that runs
    model.register_forward_pre_hook(_noting(given), with_kwargs=True)
    for reader in readers:
        reader.register_forward_pre_hook(_replacing(given), with_kwargs=True)


def _takes(module: nn.Module) -> bool:
    return _INPUT in inspect.signature(module.forward).parameters


def _noting(given: list[torch.Tensor]) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[:] = [kwargs[_INPUT]] if isinstance(kwargs.get(_INPUT), torch.Tensor) else []

    return note


def _replacing(given: list[torch.Tensor]) -> Callable[..., Inputs]:
    def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        counted = kwargs.get(_INPUT)
        if given and isinstance(counted, torch.Tensor):
            kwargs = kwargs | {_INPUT: given[0].view(counted.shape)}
        return args, kwargs

    return replace
