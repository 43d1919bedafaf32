"""An adapter as a rank has it: at modules, at experts, before the prompt."""

from typing import Any

import pytest
import torch

from peftserve.adapters.bypass import Bypass, KVPrefix, SideAttention
from peftserve.adapters.errors import AdapterTooLarge, UnsupportedAdapter
from peftserve.adapters.primitives import Circulant, Dense, ExpertLowRank, LowRank, RoutedLowRank
from peftserve.adapters.sites import Site, SiteKind
from peftserve.server.engine.parallel.bypass import BypassCutter
from peftserve.server.engine.parallel.cuts import Cut, even

SITES = {name: Site(name, SiteKind.LINEAR, 8, 12) for name in ("up", "down", "router")}
SITES["experts"] = Site("experts", SiteKind.EXPERTS, 8, 8)
CUTS = {
    "up": Cut(outputs=even(12, 2, "up")),
    "down": Cut(inputs=even(8, 2, "down")),
    "experts.gate_up_proj": Cut(outputs=even(12, 2, "up")),
    "experts.down_proj": Cut(inputs=even(6, 2, "down")),
}


def cutter(rank: int, max_dense: int = 1 << 20) -> BypassCutter:
    return BypassCutter(SITES, CUTS, {0: (torch.tensor([rank]), 2)}, rank, 2, max_dense)


def part(rank: int, **parts: Any) -> Bypass:
    return cutter(rank)(Bypass("LORA", **{"sites": {}, **parts}))


def test_each_module_is_cut_in_its_own_way() -> None:
    factors = {name: LowRank(torch.randn(3, 8), torch.randn(12, 3)) for name in ("up", "down", "router")}
    own = part(1, sites={name: (primitive,) for name, primitive in factors.items()}).sites
    (up,), (down,), (router,) = (own[name] for name in ("up", "down", "router"))
    assert isinstance(up, LowRank)
    assert isinstance(down, LowRank)
    assert torch.equal(up.b, factors["up"].b[6:])
    assert torch.equal(up.a, factors["up"].a)
    assert torch.equal(down.a, factors["down"].a[:, 4:])
    assert torch.equal(down.b, factors["down"].b)
    assert router is factors["router"]


def test_experts_are_cut_by_the_name_of_the_weight() -> None:
    up = ExpertLowRank(torch.randn(4, 2, 8), torch.randn(4, 12, 2), "gate_up_proj")
    down = ExpertLowRank(torch.randn(4, 2, 6), torch.randn(4, 8, 2), "down_proj")
    own_up, own_down = part(0, sites={"experts": (up, down)}).sites["experts"]
    assert isinstance(own_up, ExpertLowRank)
    assert isinstance(own_down, ExpertLowRank)
    assert torch.equal(own_up.b, up.b[:, :6])
    assert torch.equal(own_down.a, down.a[..., :3])


def test_a_prefix_and_side_attention_are_cut_by_heads() -> None:
    keys, values = torch.randn(5, 2, 4), torch.randn(5, 2, 4)
    prefix, side = KVPrefix(5, {0: (keys, values)}), {0: SideAttention(keys, values, 0.5)}
    own = part(1, prefix=prefix, side_attention=side)
    assert own.prefix is not None
    assert own.side_attention is not None
    assert torch.equal(own.prefix.layers[0][0], keys[:, 1:])
    assert torch.equal(own.side_attention[0].values, values[:, 1:])


def test_another_number_of_heads_is_left_for_who_compares_it_with_the_cache() -> None:
    keys = torch.randn(5, 3, 4)
    own = part(0, prefix=KVPrefix(5, {0: (keys, keys)}))
    assert own.prefix is not None
    assert own.prefix.layers[0][0] is keys


def test_what_cannot_be_cut_is_refused_with_the_module() -> None:
    routed = RoutedLowRank(torch.zeros(2, 1, 8), torch.zeros(2, 1, 12), torch.zeros(2, 8), 1, 1.0)
    with pytest.raises(UnsupportedAdapter, match=r"--tensor-parallel-size Arrow's router .* \(at down\)"):
        part(0, sites={"down": (routed,)})


def test_matrices_that_are_multiplied_out_count_against_the_limit() -> None:
    adapter = Bypass("C3A", {"up": (Circulant(torch.randn(3, 2, 4), 1.0),)})
    (dense,) = cutter(0, max_dense=4 * 6 * 8)(adapter).sites["up"]
    assert isinstance(dense, Dense)
    assert dense.w.shape == (6, 8)
    with pytest.raises(AdapterTooLarge, match="192 bytes on each; the server's --max-dense-delta is 191"):
        cutter(0, max_dense=191)(adapter)
