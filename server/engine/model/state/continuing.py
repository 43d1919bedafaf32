"""Find the mixers that forget their state at a chunk of several tokens, as some of transformers' do.

What they compute for such a chunk begins anew. They do go on by single tokens, and so they are run token by token.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from peftserve.adapters.bypass import StateKind

from ..errors import UnservableModel
from .watching import WatchedCache, WatchedCall

Calls = Mapping[str, Sequence[WatchedCall]]  # of mixers, by their names

_TOLERANCE = 1e-3  # of a token's output, in float32
_TOLERANCE_OF_16_BITS = 0.1


def find_forgetful(model: PreTrainedModel, token_ids: torch.Tensor, calls: Calls) -> set[str]:
    """Run a prompt in two chunks, and see which states reach the second one's outputs.

    calls: of the model's mixers when it ran as a whole. Returns the names of those that forget. In both chunks each
    mixer is given what it was given then, so that none is taken for the cause of another's error.
    """
    half = len(token_ids) // 2
    if half < 2 or len({len(each) for each in calls.values()}) > 1:
        return set(calls)
    try:
        cache = _begun(model, token_ids[:half], calls)
        _run_chunk(model, cache, token_ids[half:], calls)
        off = {name for name, whole in calls.items() if _is_off(whole[-1].output, cache.calls[name][-1].output, half)}
        kinds = {(key.kind, key.index) for key, state in cache.states().items() if state.is_floating_point()}
        return off.union(*(_unmoved(model, token_ids, calls, kind) for kind in kinds))
    except (UnservableModel, LookupError):
        return set(calls)


def _unmoved(
    model: PreTrainedModel, token_ids: torch.Tensor, calls: Calls, kind: tuple[StateKind, int]
) -> Iterator[str]:
    """Yield the mixers whose second chunk's outputs are numbers, although a state of theirs was none."""
    half = len(token_ids) // 2
    cache = _begun(model, token_ids[:half], calls)
    spoilt = {key for key in cache.states() if (key.kind, key.index) == kind}
    for key in spoilt:
        cache.states()[key].fill_(torch.nan)
    _run_chunk(model, cache, token_ids[half:], calls)
    for name, keys in cache.asked.items():
        if keys & spoilt and all(each.isfinite().all() for each in _tensors(cache.calls[name][-1].output)):
            yield name


def _begun(model: PreTrainedModel, chunk: torch.Tensor, calls: Calls) -> WatchedCache:
    """Return a cache that has seen the first chunk."""
    cache = WatchedCache(model)
    _run_chunk(model, cache, chunk, calls)
    return cache


def _run_chunk(model: PreTrainedModel, cache: WatchedCache, chunk: torch.Tensor, calls: Calls) -> None:
    with ExitStack() as stack:
        _give_as_before(model, calls, slice(cache.past, cache.past + len(chunk)), stack)
        cache.run(model, chunk)


def _give_as_before(model: PreTrainedModel, calls: Calls, rows: slice, stack: ExitStack) -> None:
    """Give each mixer the rows of its inputs in the whole pass, for as long as the stack lasts."""
    modules = dict(model.named_modules())
    for name, whole in calls.items():
        inputs = iter([call.hidden for call in whole])
        handle = modules[name].register_forward_pre_hook(partial(_give, inputs, rows), with_kwargs=True)
        stack.callback(handle.remove)


def _give(
    inputs: Iterator[torch.Tensor | None], rows: slice, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    whole = next(inputs, None)
    if whole is None:
        return args, kwargs
    for place, value in enumerate(args):
        if isinstance(value, torch.Tensor):
            return (*args[:place], whole[:, rows], *args[place + 1 :]), kwargs
    hidden = next(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
    return args, kwargs | {hidden: whole[:, rows]}


def _tensors(output: Any) -> list[torch.Tensor]:
    values = output if isinstance(output, tuple) else (output,)
    return [value for value in values if isinstance(value, torch.Tensor)]


def _is_off(whole: Any, second: Any, half: int) -> bool:
    """Return whether what the second chunk gave is not what the whole prompt did."""
    whole, second = _tensors(whole)[0], _tensors(second)[0]
    tolerance = _TOLERANCE if whole.dtype == torch.float32 else _TOLERANCE_OF_16_BITS
    right, got = whole[:, half:].flatten(2).float(), second.flatten(2).float()
    return bool(((got - right).norm(dim=-1) > tolerance * right.norm(dim=-1)).any())
