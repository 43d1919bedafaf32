"""The order of a step's pairs and its tiles in two launches, for as many pairs as decodes have; see `routing.py`.

    place[i]  = how many keys are less than key[i], or equal and before it
    tile[i]   = how many tiles begin at places before place[i], if one begins at i

A pair compares itself with all others, which needs no memory and no order of programs: each counts for itself. Up to
`MOST_PAIRS` that is less work than what a sort and some twenty small operators cost to be launched.
"""

import torch
import triton
import triton.language as tl

from ...integers import cdiv
from .routing import Routing

MOST_PAIRS = 4096
BLOCK = 64
WARPS = 4


def route_and_tile(
    experts: torch.Tensor, of_row: torch.Tensor, num_experts: int, combinations: int, tile: int, most: int
) -> tuple[Routing, torch.Tensor]:
    """Return what `route` and `tile_heads` return. tile: most pairs of one. most: tiles that the step can have."""
    pairs = experts.numel()
    order = torch.empty(pairs, dtype=torch.int64, device=experts.device)
    keys, inside = order.new_empty(2, pairs, dtype=torch.int32)
    heads, ends = keys.new_empty(most), keys.new_empty(num_experts)
    options = {"BLOCK": BLOCK, "num_warps": WARPS}
    experts = experts.contiguous()
    place_kernel[(cdiv(pairs, BLOCK),)](
        experts, of_row, order, keys, inside, pairs, experts.shape[1], combinations, **options
    )
    tile_kernel[(cdiv(max(pairs, num_experts), BLOCK),)](
        keys, inside, heads, ends, pairs, most, num_experts, combinations, tile, **options
    )
    return Routing(order, keys, ends, combinations, experts.shape[1]), heads


@triton.jit(do_not_specialize=["pairs", "k", "combinations"])
def place_kernel(
    experts_ptr: tl.tensor,
    of_row_ptr: tl.tensor,
    order_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    inside_ptr: tl.tensor,
    pairs: tl.tensor,
    k: tl.tensor,
    combinations: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write, at each pair's place, the pair, its key, and how many places of its group are before it.

    experts: (pairs,) int64. of_row: (tokens,) int32.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = _keys(experts_ptr, of_row_ptr, i, pairs, k, combinations)
    less = tl.zeros((BLOCK,), tl.int32)
    same = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, pairs, BLOCK):
        j = start + tl.arange(0, BLOCK)
        other = _keys(experts_ptr, of_row_ptr, j, pairs, k, combinations)
        there = (j < pairs)[None, :]
        less += tl.sum((there & (other[None, :] < key[:, None])).to(tl.int32), 1)
        same += tl.sum((there & (other[None, :] == key[:, None]) & (j[None, :] < i[:, None])).to(tl.int32), 1)
    mask = i < pairs
    tl.store(order_ptr + less + same, i.to(tl.int64), mask=mask)
    tl.store(keys_ptr + less + same, key, mask=mask)
    tl.store(inside_ptr + less + same, same, mask=mask)


@triton.jit
def _keys(
    experts_ptr: tl.tensor,
    of_row_ptr: tl.tensor,
    i: tl.tensor,
    pairs: tl.tensor,
    k: tl.tensor,
    combinations: tl.tensor,
) -> tl.tensor:
    expert = tl.load(experts_ptr + i, mask=i < pairs, other=0).to(tl.int32)
    return expert * combinations + tl.load(of_row_ptr + i // k, mask=i < pairs, other=0)


@triton.jit(do_not_specialize=["pairs", "most", "experts", "combinations", "tile"])
def tile_kernel(
    keys_ptr: tl.tensor,
    inside_ptr: tl.tensor,
    heads_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    pairs: tl.tensor,
    most: tl.tensor,
    experts: tl.tensor,
    combinations: tl.tensor,
    tile: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Write the first place of each tile, and the end of each expert's places.

    Grid: blocks of as many as there are pairs, or experts. heads: (most,), ends: (experts,), int32. tile: most pairs of
    one.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    begins = _begins(keys_ptr, inside_ptr, i, pairs, combinations, tile)
    before = tl.zeros((BLOCK,), tl.int32)
    tiles = tl.zeros((), tl.int32)
    end = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, pairs, BLOCK):
        j = start + tl.arange(0, BLOCK)
        others = _begins(keys_ptr, inside_ptr, j, pairs, combinations, tile)
        tiles += tl.sum(others.to(tl.int32), 0)
        before += tl.sum((others[None, :] & (j[None, :] < i[:, None])).to(tl.int32), 1)
        expert = tl.load(keys_ptr + j, mask=j < pairs, other=0) // combinations
        end += tl.sum(((j < pairs)[None, :] & (expert[None, :] <= i[:, None])).to(tl.int32), 1)
    tl.store(heads_ptr + before, i, mask=begins)
    tl.store(heads_ptr + i, pairs, mask=(i >= tiles) & (i < most))
    tl.store(ends_ptr + i, end, mask=i < experts)


@triton.jit
def _begins(
    keys_ptr: tl.tensor,
    inside_ptr: tl.tensor,
    i: tl.tensor,
    pairs: tl.tensor,
    combinations: tl.tensor,
    tile: tl.tensor,
) -> tl.tensor:
    """Return whether a tile begins at a place: at every `tile`th of a group whose combination is not 0."""
    key = tl.load(keys_ptr + i, mask=i < pairs, other=0)
    inside = tl.load(inside_ptr + i, mask=i < pairs, other=1)
    return (i < pairs) & (inside % tile == 0) & (key % combinations != 0)
