import random

import pytest
import torch

from peftserve.kernels.ops.experts.routing import most_tiles, route, tile_heads
from peftserve.kernels.ops.experts.triton_sort import route_and_tile


@pytest.mark.parametrize("tile", [1, 16])
@pytest.mark.parametrize(("tokens", "k", "experts", "combinations"), [(1, 1, 3, 2), (9, 3, 70, 4), (100, 2, 2, 3)])
def test_two_launches_give_what_the_operators_give(
    tokens: int, k: int, experts: int, combinations: int, tile: int
) -> None:
    draw = random.Random(tokens)
    chosen = torch.tensor([[draw.randrange(experts) for _ in range(k)] for _ in range(tokens)])
    of_row = torch.tensor([draw.randrange(combinations) for _ in range(tokens)], dtype=torch.int32)
    wanted = route(chosen, of_row, experts, combinations)
    most = most_tiles(int((of_row > 0).sum()) * k, experts * (combinations - 1), tile)
    got, heads = route_and_tile(chosen, of_row, experts, combinations, tile, most)
    for name in ("order", "keys", "ends"):
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name
    assert (got.combinations, got.k) == (wanted.combinations, wanted.k)
    assert torch.equal(heads, tile_heads(wanted, tile, most))
