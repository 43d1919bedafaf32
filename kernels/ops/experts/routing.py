"""The pairs of a step's tokens and experts in the order in which they are multiplied: by expert, then by adapters.

One sort serves the base's grouped products, for which the pairs of an expert must adjoin, and the bypass, for which
those of an expert and a combination of adapters must (`combinations.py`). Nothing here looks at a value, so no host
waits for a device, and no size depends on a value either.
"""

from typing import NamedTuple

import torch

from ...integers import cdiv


class Routing(NamedTuple):
    """The order of a step's pairs at one module.

    order: (pairs,) int64, the pair at each place. keys: (pairs,) int32, `expert · combinations + combination` there.
    ends: (experts,) int32, the place behind each expert's last. k: experts of a token, whose pairs adjoin before the
    sort.
    """

    order: torch.Tensor
    keys: torch.Tensor
    ends: torch.Tensor
    combinations: int
    k: int

    @property
    def tokens(self) -> torch.Tensor:
        """Return the token at each place, (pairs,) int64."""
        return self.order // self.k

    @property
    def experts(self) -> torch.Tensor:
        """Return the expert at each place, (pairs,) int32."""
        return self.keys // self.combinations

    def restored(self, values: torch.Tensor) -> torch.Tensor:
        """Bring (pairs, width) by place back to the order of tokens: (tokens, k, width)."""
        places = torch.empty_like(self.order)
        places[self.order] = torch.arange(len(places), device=places.device)
        return values[places].view(-1, self.k, values.shape[-1])


def route(experts: torch.Tensor, of_row: torch.Tensor, num_experts: int, combinations: int) -> Routing:
    """Sort the pairs by expert and combination.

    experts: (tokens, k). of_row: (tokens,) int32, the combination of each token.
    """
    keys, order = (experts.to(torch.int32) * combinations + of_row[:, None]).flatten().sort(stable=True)
    bounds = torch.arange(1, num_experts + 1, dtype=torch.int32, device=keys.device) * combinations
    return Routing(order, keys, torch.searchsorted(keys, bounds, out_int32=True), combinations, experts.shape[1])


def most_tiles(pairs: int, groups: int, block: int) -> int:
    """Return how many tiles of up to `block` pairs of one group each there can be, of at most so many groups."""
    return min(pairs, cdiv(pairs, block) + min(pairs, groups))


def tile_heads(routing: Routing, block: int, most: int) -> torch.Tensor:
    """Return the first place of each tile of up to `block` pairs, (most,) int32; `pairs` where there is no tile.

    Pairs of combination 0 are in no tile. most: how many tiles the step can have.
    """
    keys, pairs = routing.keys, len(routing.keys)
    places = torch.arange(pairs, dtype=torch.int32, device=keys.device)
    inside = places - torch.searchsorted(keys, keys, out_int32=True)
    first = (inside % block == 0) & (keys % routing.combinations != 0)
    numbers = torch.where(first, first.cumsum(0) - 1, most)
    heads = torch.full((most + 1,), pairs, dtype=torch.int32, device=keys.device)
    return heads.scatter_(0, numbers, torch.where(first, places, pairs))[:most]
