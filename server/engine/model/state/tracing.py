"""Find the modules that keep state, by a pass over transformers' own cache: no class of a model is known by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from peftserve.adapters.bypass import StateKey

from ...private.transformers_private import is_stateful
from ..errors import UnservableModel
from .continuing import find_forgetful
from .norms import find_norms
from .watching import WatchedCache, WatchedCall, cache_argument

_OWN = "it keeps state in modules of its own, where sequences cannot be told apart"


class StateShape(NamedTuple):
    """What one sequence's state is. shape: without the dimension of the batch."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class Output(NamedTuple):
    """One tensor that a mixer returns, (1, tokens, *shape)."""

    shape: torch.Size
    dtype: torch.dtype


class Mixer(NamedTuple):
    """A module that keeps state. argument: the one by which it is given the cache.

    outputs: what it returns; None for what is no tensor by tokens, which nobody may need. in_tuple: whether that is a
    tuple. forgets: whether a chunk of several tokens would begin anew.
    """

    name: str
    argument: str
    outputs: tuple[Output | None, ...]
    in_tuple: bool = False
    forgets: bool = False

    @property
    def returned(self) -> list[Output]:
        """Return the outputs that are tensors by tokens."""
        return [output for output in self.outputs if output is not None]


@dataclass(frozen=True)
class TracedStates:
    """All that a model keeps beside keys and values; nothing for most.

    norms: those inside mixers that see tokens in their order, with the number of tensors that they are given.
    """

    mixers: tuple[Mixer, ...] = ()
    shapes: Mapping[StateKey, StateShape] | None = None
    norms: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes_per_sequence(self) -> int:
        return sum(shape.num_bytes for shape in (self.shapes or {}).values())

    def inside(self, name: str) -> bool:
        """Return whether a module of this name is in a mixer, or one itself."""
        return any(name == mixer.name or name.startswith(f"{mixer.name}.") for mixer in self.mixers)


@torch.no_grad()
def trace_states(model: PreTrainedModel, token_ids: torch.Tensor) -> TracedStates:
    """Run a prompt with transformers' cache. token_ids: (tokens,).

    Raises UnservableModel if state is kept where it cannot be told apart by sequence.
    """
    cache = _cache_for(model)
    if cache is None:
        return TracedStates()
    cache.run(model, token_ids)
    if is_stateful(model) and not cache.calls:
        raise UnservableModel(_OWN)
    shapes = {key: StateShape(state.shape[1:], state.dtype) for key, state in cache.states().items()}
    forgetful = find_forgetful(model, token_ids, cache.calls)
    mixers = [_mixer(name, calls, len(token_ids), name in forgetful) for name, calls in cache.calls.items()]
    found = TracedStates(tuple(mixers), shapes)
    cache.run(model, token_ids[:1])
    for name, calls in cache.calls.items():
        _check_by_token(name, calls[-1])
    return replace(found, norms=find_norms(model, token_ids, found.inside))


def _cache_for(model: PreTrainedModel) -> WatchedCache | None:
    """Return a cache for a model that keeps state; None for others. Raises UnservableModel if it has no place there."""
    try:
        cache = WatchedCache(model)
    except (KeyError, AttributeError, TypeError, ValueError):
        cache = None  # kinds of layers that transformers' cache does not know
    if is_stateful(model) and (cache is None or cache.keeps_keys_only):
        raise UnservableModel(_OWN)
    return cache if cache is not None and cache.keeps_state and cache_argument(model) is not None else None


def _mixer(name: str, calls: list[WatchedCall], num_tokens: int, forgets: bool) -> Mixer:
    """Describe a mixer by its calls for a prompt. Raises UnservableModel if it cannot be run in parts."""
    found = {_described(name, call, num_tokens, forgets) for call in calls}
    if len(found) > 1:
        raise UnservableModel(f"{name} returns other shapes each time it is called")
    return found.pop()


def _described(name: str, call: WatchedCall, num_tokens: int, forgets: bool) -> Mixer:
    if call.hidden is None or call.hidden.shape[:2] != (1, num_tokens):
        raise UnservableModel(f"{name} keeps state, but is not given a batch of tokens")
    in_tuple = isinstance(call.output, tuple)
    returned = [_output(each, num_tokens) for each in (call.output if in_tuple else (call.output,))]
    if returned[0] is None or len({each.dtype for each in returned if each is not None}) > 1:
        raise UnservableModel(f"{name} keeps state, but does not return tensors of one type for a batch of tokens")
    return Mixer(name, call.argument, tuple(returned), in_tuple, forgets)


def _check_by_token(name: str, call: WatchedCall) -> None:
    """Check a call for one token: what a part of a step is given of a tensor must not hang on how many rows there are.

    Raises UnservableModel.
    """
    if others := [shape for shape in call.shapes if len(shape) > 1 and shape[0] == 1 and shape[1] != 1]:
        raise UnservableModel(f"{name} keeps state, and is given a tensor that is not by tokens, {tuple(others[0])}")


def _output(returned: Any, num_tokens: int) -> Output | None:
    if not isinstance(returned, torch.Tensor) or returned.dim() < 3 or returned.shape[:2] != (1, num_tokens):
        return None
    return Output(returned.shape[2:], returned.dtype)
