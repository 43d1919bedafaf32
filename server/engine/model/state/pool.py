"""Slots of state on the device: of each sequence that runs, by its seat, of snapshots, and one that nobody reads."""

from collections.abc import Mapping

import torch

from peftserve.adapters.bypass import StateKey

from .tracing import StateShape


class StatePool:
    """The states of one model. slots: of sequences and snapshots; one more is for the rows of graphs beyond a step's.

    states[key]: (slots + 1, *shape).
    """

    def __init__(self, shapes: Mapping[StateKey, StateShape], slots: int, device: torch.device) -> None:
        self.slots = slots
        self.states = {
            key: torch.zeros(slots + 1, *shape.shape, dtype=shape.dtype, device=device) for key, shape in shapes.items()
        }

    def read(self, key: StateKey, slots: torch.Tensor) -> torch.Tensor:
        """Return a copy of states. slots: (sequences,) int64. Returns (sequences, *shape)."""
        return self.states[key].index_select(0, slots)

    def write(self, key: StateKey, slots: torch.Tensor, states: torch.Tensor) -> None:
        """Store states (sequences, *shape), which are of the type in which they are kept."""
        self.states[key].index_copy_(0, slots, states)

    def fill(self, slot: int, states: Mapping[StateKey, torch.Tensor]) -> None:
        """Set states (*shape) of one slot, of the type in which they are kept."""
        for key, state in states.items():
            self.states[key][slot].copy_(state)

    def copy(self, source: int, target: int) -> None:
        """Copy all states of one slot to another."""
        for state in self.states.values():
            state[target].copy_(state[source])
