"""Modules of transformers that keep state, but not in its cache: made to keep it there, as all others do.

A row of OWN says, by the full name of a class, what is called in place of its forward. Where that is given a cache, the
state goes from there into the places where the class's own forward looks for it, and back. Each call has such places
of its own: calls for several sequences may go on side by side, and stop wherever a linear is called.
"""

import copy
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import LinearAttentionLayer

__all__ = ["OWN", "keep_states_in_a_cache", "own_layers"]

_GRIFFIN = "transformers.models.recurrent_gemma.modeling_recurrent_gemma.RecurrentGemmaRecurrentBlock"
_RWKV = "transformers.models.rwkv.modeling_rwkv"
_WHY = "Where its state is, in and out of a call. Without it the class is refused. Instead: model code of our own."

NAMES: Mapping[str, str] = {
    _GRIFFIN: _WHY,
    f"{_RWKV}.RwkvSelfAttention": _WHY,
    f"{_RWKV}.RwkvFeedForward": _WHY,
    "transformers.cache_utils.LinearAttentionLayer": (
        "What transformers' cache keeps of a layer beside keys and values. Without it these classes are refused."
    ),
}

_RWKV_STATES = 5  # of a layer: the last inputs of both halves, and numerators, denominators and maxima
_LEAST = -1e30  # with which RWKV's maxima begin


def keep_states_in_a_cache(model: nn.Module) -> None:
    """Let modules of the classes of OWN keep their state in the cache that they are given, if they are given one."""
    for name, module in model.named_modules():
        if (run := OWN.get(f"{type(module).__module__}.{type(module).__qualname__}")) is not None:
            layer = next(int(part) for part in name.split(".") if part.isdigit())
            module.forward = partial(run, module, layer)


class _Recurrent(LinearAttentionLayer):
    """A layer of a cache whose states may all be recurrent ones: transformers' own finds them by a convolution's."""

    def update_recurrent_state(self, recurrent_states: torch.Tensor, state_idx: int = 0, **kwargs: Any) -> torch.Tensor:
        kept: torch.Tensor = super().update_recurrent_state(recurrent_states, state_idx, **kwargs)
        self.has_previous_state[state_idx] = True
        return kept


def own_layers(model: PreTrainedModel) -> list[Any]:
    """Return the layers of a cache for a model whose configuration names none with a state; none for any other."""
    count = sum(f"{type(module).__module__}.{type(module).__qualname__}" == _RWKV_HALF for module in model.modules())
    return [_Recurrent(number_of_states=_RWKV_STATES) for _ in range(count)]


def _griffin(
    module: Any,
    layer: int,
    input_states: torch.Tensor,
    position_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    use_cache: bool = True,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    forward = type(module).forward
    if past_key_values is None:
        return forward(module, input_states, position_ids, attention_mask, use_cache, **kwargs)
    own, unit = copy.copy(module), copy.copy(module.rg_lru)
    own._modules = {**module._modules, "rg_lru": unit}
    for part, name in ((own, "conv1d_state"), (unit, "recurrent_states")):
        part.__dict__.pop(name, None)
        kind: Any = type(part)
        part.__class__ = _with_state(kind, name)
        part.kept = past_key_values, layer
    return forward(own, input_states, position_ids, attention_mask, True, **kwargs)


@cache
def _with_state(of: type, name: str) -> type:
    """Return a class whose state of this name is that of a cache: read there when it is asked for, and not before.

    A call for one token of several finds what the call for the token before has left in the meantime.
    """
    kind = "conv" if name.startswith("conv") else "recurrent"

    def get(self: Any) -> torch.Tensor | None:
        past, layer = self.kept
        own: torch.Tensor | None = self.__dict__.get("of_this_call")
        return getattr(past, f"get_{kind}_state")(layer) if own is None else own

    def put(self: Any, value: torch.Tensor) -> None:
        past, layer = self.kept
        self.__dict__["of_this_call"] = value
        getattr(past, f"update_{kind}_state")(value, layer)

    return type(of.__name__, (of,), {name: property(get, put)})


class _Column:
    """One layer of one of RWKV's states, which its modules read and write as `state[:, :, layer]`.

    value: (sequences, width). by_token: whether it is read as (sequences, 1, width): transformers leaves the dimension
    of tokens out, which is right for one sequence only.
    """

    def __init__(self, value: torch.Tensor, by_token: bool = False) -> None:
        self.value = value
        self._by_token = by_token

    def __getitem__(self, _: Any) -> torch.Tensor:
        return self.value[:, None] if self._by_token else self.value

    def __setitem__(self, _: Any, value: torch.Tensor) -> None:
        self.value = value


def _rwkv_attention(
    module: Any, layer: int, hidden: torch.Tensor, state: Any = None, use_cache: bool = False
) -> tuple[torch.Tensor, Any]:
    if state is None or isinstance(state, list):
        output: tuple[torch.Tensor, Any] = type(module).forward(module, hidden, state, use_cache)
        return output
    width, count = module.attention_hidden_size, len(hidden)
    shift = _Column(_state(state, layer, 1, hidden.new_zeros(count, hidden.shape[2])), hidden.shape[1] == 1)
    begin = torch.zeros(count, width, device=hidden.device)
    sums = [_Column(_state(state, layer, i, begin if i < 4 else begin + _LEAST)) for i in (2, 3, 4)]
    out, _ = type(module).forward(module, hidden, [None, shift, *sums], True)
    for index, column in enumerate((shift, *sums), 1):
        state.update_recurrent_state(column.value, layer, index)
    return out, state


def _rwkv_feed_forward(module: Any, layer: int, hidden: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
    if state is None or isinstance(state, list):
        output: tuple[torch.Tensor, Any] = type(module).forward(module, hidden, state)
        return output
    begin = hidden.new_zeros(len(hidden), hidden.shape[2])
    shift = _Column(_state(state, layer, 0, begin), hidden.shape[1] == 1)
    out, _ = type(module).forward(module, hidden, [shift])
    state.update_recurrent_state(shift.value, layer, 0)
    return out, state


def _state(cache: Any, layer: int, index: int, begin: torch.Tensor) -> torch.Tensor:
    """Return a state of the sequences; `begin` where they have none."""
    found: torch.Tensor | None = cache.get_recurrent_state(layer, index)
    return begin if found is None else found


_RWKV_HALF = f"{_RWKV}.RwkvSelfAttention"
OWN: Mapping[str, Callable[..., Any]] = {
    _GRIFFIN: _griffin,
    _RWKV_HALF: _rwkv_attention,
    f"{_RWKV}.RwkvFeedForward": _rwkv_feed_forward,
}
