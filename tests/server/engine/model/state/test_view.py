"""What a mixer is given does what transformers' own layer of the cache does, for the sequences of a part."""

import pytest
import torch
from transformers.cache_utils import LinearAttentionLayer

from peftserve.adapters.bypass import StateKey
from peftserve.server.engine.model.state.parts import Part
from peftserve.server.engine.model.state.pool import StatePool
from peftserve.server.engine.model.state.tracing import StateShape
from peftserve.server.engine.model.state.view import StateView

CONV, RECURRENT, LINEAR = StateKey("conv", 1, 0), StateKey("recurrent", 1, 0), StateKey("linear", 1, 0)
WIDTH = 3


@pytest.fixture
def pool() -> StatePool:
    shapes = {
        CONV: StateShape(torch.Size([4, WIDTH]), torch.float32),
        RECURRENT: StateShape(torch.Size([2, 5]), torch.float32),
        LINEAR: StateShape(torch.Size([2, 2]), torch.float32),
    }
    return StatePool(shapes, 6, torch.device("cpu"))


@pytest.mark.parametrize("lengths", [[1, 1, 1], [2, 1, 4], [7, 2, 1, 1]])
def test_states_follow_transformers_layer(pool: StatePool, lengths: list[int]) -> None:
    layer, slots = LinearAttentionLayer(), torch.tensor([4, 0])
    for place, length in enumerate(lengths):
        view = StateView(pool, Part(None, slots, 2, length, fresh=place == 0))
        assert view.has_previous_state(1) == layer.has_previous_state[0]
        conv, recurrent = torch.randn(2, 4, length), torch.randn(2, 2, 5)
        expected = layer.update_conv_state(conv, conv_kernel_size=WIDTH)
        assert torch.equal(view.update_conv_state(conv, 1, conv_kernel_size=WIDTH), expected)
        assert torch.equal(view.update_recurrent_state(recurrent, 1), layer.update_recurrent_state(recurrent))
        view.write_back()
        assert torch.equal(pool.read(CONV, slots), layer.conv_states[0])
        assert torch.equal(pool.read(RECURRENT, slots), layer.recurrent_states[0])
    assert not pool.read(CONV, torch.tensor([1, 2, 3, 5])).any()


def test_a_fresh_part_has_no_state_whatever_is_in_its_slot(pool: StatePool) -> None:
    pool.states[CONV].fill_(5)
    view = StateView(pool, Part(None, torch.tensor([2]), 1, 3, fresh=True))
    assert view.get_conv_state(1) is None
    assert view.get_recurrent_state(1) is None
    assert view.get_linear_cache(1) is None


def test_states_changed_in_place_are_seen_by_who_holds_them_and_written_back(pool: StatePool) -> None:
    """As mixers do that are run token by token: each holds the state from before the one before it wrote."""
    slots = torch.tensor([3])
    view = StateView(pool, Part(None, slots, 1, 1, fresh=False))
    held = view.get_recurrent_state(1)
    assert held is not None
    view.update_recurrent_state(torch.ones(1, 2, 5), 1)
    assert held.eq(1).all()
    held.add_(1)
    view.set_linear_cache(1, torch.full((1, 2, 2), 3.0))
    view.write_back()
    assert pool.read(RECURRENT, slots).eq(2).all()
    assert pool.read(LINEAR, slots).eq(3).all()
