"""transformers' own cache, watched: which modules ask it for state, and what these are given and return."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from peftserve.adapters.bypass import StateKey, StateKind

from ...private.own_state_private import own_layers
from ..errors import UnservableModel


class WatchedCall(NamedTuple):
    """One call of a module that was given the cache, as `argument`.

    hidden: the first tensor that it was given; None without any. output: what it returned; None if it failed.
    shapes: of all tensors that it was given.
    """

    argument: str
    hidden: torch.Tensor | None
    output: Any
    shapes: frozenset[torch.Size] = frozenset()


class WatchedCache(DynamicCache):
    """transformers' cache, which notes the calls of modules that ask it for state.

    calls: of these modules, by their names, in order. asked: the states that they asked for. past: how many tokens it
    has seen before the pass that runs.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(config=model.config)
        self.layers = own_layers(model) or self.layers
        self.calls: dict[str, list[WatchedCall]] = {}
        self.past = 0
        self.asked: dict[str, set[StateKey]] = {}
        self._linear: dict[int, torch.Tensor] = {}  # by layer; MiniMax keeps its states under this name
        self._running: list[tuple[str, str]] = []  # names of modules that were given this cache, with the argument

    @property
    def keeps_state(self) -> bool:
        return any(hasattr(layer, "conv_states") for layer in self.layers)

    @property
    def keeps_keys_only(self) -> bool:
        """Return whether its layers have room for nothing but keys and values."""
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.layers)

    def run(self, model: PreTrainedModel, token_ids: torch.Tensor) -> None:
        """Run tokens (tokens,) that come behind those that it has seen.

        Raises UnservableModel if state is asked for in modules that are not given this cache, or if the pass fails.
        """
        positions = torch.arange(self.past, self.past + len(token_ids), device=token_ids.device)
        argument = cache_argument(model)
        assert argument is not None
        with ExitStack() as stack:
            for name, module in model.named_modules():
                before = module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
                after = module.register_forward_hook(partial(self._leave, name), with_kwargs=True, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            cached = {"use_cache": False, argument: self}
            try:
                model(input_ids=token_ids[None], position_ids=positions[None], **cached)
            except UnservableModel:
                raise
            except Exception as error:  # of whatever the model's code raises
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UnservableModel(f"transformers cannot run it with a cache: {reason}") from error
        self.past += len(token_ids)

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        argument = _argument_of(self, module, args, kwargs)
        if argument is not None:
            self._running.append((name, argument))

    def _leave(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._running or self._running[-1][0] != name:
            return
        _, argument = self._running.pop()
        if name in self.asked:
            given = [*args, *kwargs.values()]
            hidden = next((each for each in given if isinstance(each, torch.Tensor)), None)
            shapes = frozenset(each.shape for each in _tensors_in(given))
            self.calls.setdefault(name, []).append(WatchedCall(argument, hidden, output, shapes))

    def _note(self, key: tuple[StateKind, int, int]) -> None:
        if not self._running:
            raise UnservableModel("it keeps state in modules that are not given transformers' cache")
        self.asked.setdefault(self._running[-1][0], set()).add(StateKey(*key))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens have been seen, which transformers cannot tell without layers of attention."""
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        if all(self.is_linear):
            return self.past + query_length, 0
        return super().get_mask_sizes(query_length, layer_idx)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        self._note(("conv", layer_idx, state_idx))
        return super().get_conv_state(layer_idx, state_idx)

    def update_conv_state(
        self, conv_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        self._note(("conv", layer_idx, state_idx))
        return super().update_conv_state(conv_states, layer_idx, state_idx, **kwargs)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        self._note(("recurrent", layer_idx, state_idx))
        return super().get_recurrent_state(layer_idx, state_idx)

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        self._note(("recurrent", layer_idx, state_idx))
        return super().update_recurrent_state(recurrent_states, layer_idx, state_idx, **kwargs)

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        self._note(("linear", layer_idx, 0))
        return self._linear.get(layer_idx)

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        self._note(("linear", layer_idx, 0))
        self._linear[layer_idx] = linear_cache

    def states(self) -> dict[StateKey, torch.Tensor]:
        """Return the states that the passes so far have left: (1, ...) each."""
        kinds: tuple[tuple[StateKind, str], ...] = (("conv", "conv_states"), ("recurrent", "recurrent_states"))
        kept = {
            StateKey(kind, layer, index): state
            for layer, states in enumerate(self.layers)
            for kind, attribute in kinds
            for index, state in getattr(states, attribute, {}).items()
            if state is not None
        }
        return kept | {StateKey("linear", layer, 0): state for layer, state in self._linear.items()}


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(each)


def cache_argument(model: PreTrainedModel) -> str | None:
    """Return the name of the argument by which the model takes a cache."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params", "state") if name in names), None)


def _argument_of(cache: WatchedCache, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Return the name of the argument by which a module is given the cache; None if it is not."""
    given = kwargs
    if any(each is cache for each in args):
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return next((name for name, value in given.items() if value is cache), None)
