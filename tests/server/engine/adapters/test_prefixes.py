"""Every layer of the base gets its part of a prefix, or the prefix is refused."""

import pytest
import torch

from peftserve.adapters.bypass import KVPrefix, StateKey
from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.kernels.attention.layout import AttentionLayer
from peftserve.server.engine.adapters.prefixes import prefix_of_base
from peftserve.server.engine.model.attention import PagedAttention

LENGTH, HEADS, DIM = 3, 2, 4


def prefix(*layers: int, dim: int = DIM) -> KVPrefix:
    return KVPrefix(LENGTH, {i: tuple(torch.full((LENGTH, HEADS, dim), float(i)) for _ in "kv") for i in layers})


@pytest.fixture
def attention() -> PagedAttention:
    """A model of four layers, of which the last reads the second one's keys and values."""
    made = PagedAttention()
    made.layers = {i: AttentionLayer(4, HEADS, DIM, DIM, 0.5, None, None, False, False, False) for i in range(4)}
    made.sources = {3: 1}
    return made


def test_layers_that_read_another_one_get_its_part(attention: PagedAttention) -> None:
    whole = prefix_of_base(prefix(0, 1, 2), attention, {})
    assert [int(whole.layers[i][0].unique()) for i in range(4)] == [0, 1, 2, 1]


@pytest.mark.parametrize(
    ("brought", "said"),
    [
        (prefix(0, 1), "no keys and values for layers 2"),
        (prefix(0, 1, 2, dim=8), "its cache holds keys of 2 heads of 8"),
        (KVPrefix(LENGTH, prefix(0, 1, 2).layers, {StateKey("conv", 0, 0): torch.zeros(1)}), "recurrent layers"),
    ],
)
def test_what_does_not_fit_is_refused(brought: KVPrefix, said: str, attention: PagedAttention) -> None:
    with pytest.raises(UnsupportedAdapter, match=said):
        prefix_of_base(brought, attention, {})


def test_layers_that_attend_several_times_have_none(attention: PagedAttention) -> None:
    attention.repeated = {0: [0, -1]}
    with pytest.raises(UnsupportedAdapter, match="several times"):
        prefix_of_base(prefix(0, 1, 2), attention, {})
