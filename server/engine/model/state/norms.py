"""Norms inside the modules that keep state: which of them see a step's tokens one after the other.

Some are given a gate beside what they normalise, and some the heads of all tokens as rows, token by token. An adapter
can be on those whose inputs change for a token's own rows alone when that token is another: then rows are tokens.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .watching import WatchedCache

Given = tuple[torch.Tensor, ...]  # what a norm is called with: one tensor, or one and its gate
_TOLERANCE = 1e-3


def find_norms(model: PreTrainedModel, token_ids: torch.Tensor, inside: Callable[[str], bool]) -> Mapping[str, int]:
    """Run a prompt (tokens,) twice, with another last token. Returns the norms' names, and how many inputs they take.

    inside: whether a module of a name is in one that keeps state.
    """
    modules = {name: module for name, module in model.named_modules() if inside(name) and _may_be_norm(module)}
    if not modules:
        return {}
    other = token_ids.clone()
    other[-1] = token_ids[0] if token_ids[0] != token_ids[-1] else (token_ids[-1] + 1) % model.config.vocab_size
    seen, changed = (_inputs(model, ids, modules) for ids in (token_ids, other))
    return {
        name: len(seen[name][0])
        for name, module in modules.items()
        if name in seen and _sees_tokens_in_order(module, seen[name], changed.get(name, []), len(token_ids))
    }


def _may_be_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 1 and not any(module.children())


def _inputs(
    model: PreTrainedModel, token_ids: torch.Tensor, modules: Mapping[str, nn.Module]
) -> Mapping[str, list[Given]]:
    """Return what modules are called with, by their names; no entry for one that is called in another way."""
    found: dict[str, list[Given]] = {}
    with ExitStack() as stack:
        for name, module in modules.items():
            hook = module.register_forward_hook(partial(_note, found.setdefault(name, [])), with_kwargs=True)
            stack.callback(hook.remove)
        WatchedCache(model).run(model, token_ids)
    return {name: calls for name, calls in found.items() if calls and all(calls)}


def _note(calls: list[Given], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Note a call; as one without inputs if the output is not by the rows of all inputs alone."""
    shapes = {each.shape if isinstance(each, torch.Tensor) else None for each in (*args, output)}
    calls.append(args if len(args) in (1, 2) and not kwargs and len(shapes) == 1 and None not in shapes else ())


def _sees_tokens_in_order(module: Any, seen: list[Given], changed: list[Given], num_tokens: int) -> bool:
    """Return whether a norm is called once, with as many rows of each token, of which only the last one's change."""
    if len(seen) != 1 or len(changed) != 1 or len(seen[0]) != len(changed[0]):
        return False
    width = module.weight.numel()
    if any(each.shape[-1] != width or each.numel() % (num_tokens * width) for each in seen[0]):
        return False
    for before, after in zip(seen[0], changed[0], strict=True):
        rows = before.reshape(num_tokens, -1).float()
        moved = (after.reshape(num_tokens, -1).float() - rows).norm(dim=-1)
        if not moved[-1] or bool((moved[:-1] > _TOLERANCE * rows[:-1].norm(dim=-1)).any()):
            return False
    return True
