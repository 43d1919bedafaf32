"""What a mixer is given in place of transformers' cache: the states of one part's sequences, read and written back."""

from typing import Any

import torch
from torch.nn import functional

from peftserve.adapters.bypass import StateKey

from .parts import Part
from .pool import StatePool


class StateView:
    """The methods of transformers' `Cache` that mixers call, over the slots of one part, for one call of a mixer.

    Each state is one tensor for as long as the call lasts, as in transformers' cache: mixers change it in place, and
    calls of one for the tokens of a span, one by one, find what those before have left.
    """

    def __init__(self, pool: StatePool, part: Part) -> None:
        self._pool = pool
        self._part = part
        self._states: dict[StateKey, torch.Tensor] = {}

    def write_back(self) -> None:
        """Store the states, after the call."""
        for key, states in self._states.items():
            self._pool.write(key, self._part.slots, states)

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return not self._part.fresh

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self._get(StateKey("conv", layer_idx, state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self._get(StateKey("recurrent", layer_idx, state_idx))

    def get_linear_cache(self, layer_idx: int) -> torch.Tensor | None:
        return self._get(StateKey("linear", layer_idx, 0))

    def _get(self, key: StateKey) -> torch.Tensor | None:
        if self._part.fresh:
            return None
        if key not in self._states:
            self._states[key] = self._pool.read(key, self._part.slots)
        return self._states[key]

    def _set(self, key: StateKey, states: torch.Tensor) -> torch.Tensor:
        """Change a state in place. Returns it in the type in which it is kept."""
        if (before := self._get(key)) is None:
            self._states[key] = states.to(self._pool.states[key].dtype, copy=True)
        else:
            before.copy_(states)
        return self._states[key]

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Store the last of (sequences, channels, tokens). Returns them behind the state, or behind padding."""
        key = StateKey("conv", layer_idx, state_idx)
        width, before = self._pool.states[key].shape[-1], self._get(key)
        if before is None:
            whole = functional.pad(conv_states, (max(width - conv_states.shape[-1], 0), 0))
        else:
            whole = torch.cat([before, conv_states], dim=-1)
        self._set(key, whole[..., -width:])
        return whole

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Store (sequences, ...). Returns them as they are kept."""
        return self._set(StateKey("recurrent", layer_idx, state_idx), recurrent_states)

    def set_linear_cache(self, layer_idx: int, linear_cache: torch.Tensor) -> None:
        self._set(StateKey("linear", layer_idx, 0), linear_cache)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave keys and values to the paged cache, behind the attention interface."""
        return key_states, value_states
