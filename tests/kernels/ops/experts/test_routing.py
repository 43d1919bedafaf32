import random
from itertools import pairwise

import pytest
import torch

from peftserve.kernels.ops.experts.routing import most_tiles, route, tile_heads

EXPERTS, COMBINATIONS = 5, 4


def test_pairs_are_sorted_by_expert_and_combination_and_come_back() -> None:
    experts = torch.tensor([[4, 1], [1, 0], [4, 1]])
    routing = route(experts, torch.tensor([2, 0, 1], dtype=torch.int32), EXPERTS, COMBINATIONS)
    assert routing.order.tolist() == [3, 2, 5, 1, 4, 0]
    assert routing.experts.tolist() == [0, 1, 1, 1, 4, 4]
    assert (routing.keys % COMBINATIONS).tolist() == [0, 0, 1, 2, 1, 2]
    assert routing.tokens.tolist() == [1, 1, 2, 0, 2, 0]
    assert routing.ends.tolist() == [1, 4, 4, 4, 6]
    pairs = torch.arange(6.0)[:, None]
    assert torch.equal(routing.restored(pairs[routing.order]), pairs.view(3, 2, 1))


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("tokens", [0, 1, 7, 60])
def test_tiles_hold_each_pair_with_an_adapter_once(tokens: int, block: int) -> None:
    draw = random.Random(tokens)
    experts = torch.tensor([[draw.randrange(EXPERTS) for _ in range(3)] for _ in range(tokens)]).view(-1, 3)
    of_row = torch.tensor([draw.randrange(COMBINATIONS) for _ in range(tokens)], dtype=torch.int32)
    routing = route(experts, of_row, EXPERTS, COMBINATIONS)
    adapted = int((of_row > 0).sum()) * 3
    most = most_tiles(adapted, EXPERTS * (COMBINATIONS - 1), block)
    heads = tile_heads(routing, block, most).tolist()
    there = [head for head in heads if head < tokens * 3]
    assert there == sorted(set(there))
    assert heads == there + [tokens * 3] * (most - len(there))
    keys, covered = routing.keys.tolist(), []
    for head, after in pairwise([*there, tokens * 3]):
        tile = [place for place in range(head, min(head + block, after)) if keys[place] == keys[head]]
        covered += tile
    assert covered == [place for place, key in enumerate(keys) if key % COMBINATIONS]
