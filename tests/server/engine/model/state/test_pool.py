"""Slots of state: what is written to one is read from it, and no other changes."""

import torch

from peftserve.adapters.bypass import StateKey
from peftserve.server.engine.model.state.pool import StatePool
from peftserve.server.engine.model.state.tracing import StateShape

CONV, RECURRENT = StateKey("conv", 0, 0), StateKey("recurrent", 2, 1)
SHAPES = {
    CONV: StateShape(torch.Size([6, 3]), torch.bfloat16),
    RECURRENT: StateShape(torch.Size([2, 4, 4]), torch.float32),
}


def test_states_are_kept_by_slot_in_their_own_type() -> None:
    pool = StatePool(SHAPES, 4, torch.device("cpu"))
    states = torch.randn(2, 6, 3).bfloat16()
    pool.write(CONV, torch.tensor([3, 1]), states)
    assert torch.equal(pool.read(CONV, torch.tensor([1, 3])), states[[1, 0]])
    assert not pool.read(CONV, torch.tensor([0, 2, 4])).any()
    assert not pool.states[RECURRENT].any()


def test_a_slot_is_filled_with_states_from_elsewhere() -> None:
    pool = StatePool(SHAPES, 2, torch.device("cpu"))
    states = {key: torch.randn(shape.shape).to(shape.dtype) for key, shape in SHAPES.items()}
    pool.fill(1, states)
    for key, state in states.items():
        assert torch.equal(pool.states[key][1], state)
        assert not pool.states[key][0].any()


def test_copying_a_slot_copies_all_of_its_states() -> None:
    pool = StatePool(SHAPES, 2, torch.device("cpu"))
    for state in pool.states.values():
        state[0].normal_()
    pool.copy(0, 1)
    for state in pool.states.values():
        assert torch.equal(state[1], state[0])
        assert not state[2].any()
