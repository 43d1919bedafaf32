from collections.abc import Mapping

import torch

from peftserve.kernels.bypass.layout import Group, GroupLayout
from peftserve.server.engine.adapters.fused_scales import conflict, needs_whole, split
from peftserve.server.engine.adapters.packing import OpLayout, Place, SiteGroups

SITES = SiteGroups((Group(8, (6, 4)), Group(8, (5,))), {"q": (0, 0), "k": (0, 1), "o": (1, 0)})
LOW_RANK = {0: GroupLayout(0, (2, 3), (64, 96))}


def op(kind: str, offset: int, width: int, shared: str | None = None) -> OpLayout:
    return OpLayout(kind, {"d": Place(offset, torch.Size([width]), None, shared)}, {})


def test_scales_and_biases_ride_with_or_without_low_rank_factors() -> None:
    scale, bias, lone = op("output_scale", 128, 4), op("bias", 160, 6), op("output_scale", 0, 5)
    groups, fused, rest = split(LOW_RANK, {"k": (scale,), "q": (bias,), "o": (lone,)}, SITES)
    assert groups[0] == GroupLayout(0, (2, 3), (64, 96), scales=(None, 128), biases=(160, None))
    assert groups[1] == GroupLayout(0, (0,), (0,), scales=(0,))
    assert fused == {"k": (scale,), "q": (bias,), "o": (lone,)}
    assert rest == {}


def test_a_scale_does_not_ride_behind_an_operator_and_a_bias_does() -> None:
    scale, bias, turn = op("output_scale", 128, 6), op("bias", 160, 6), op("pair_rotation", 192, 6)
    groups, fused, rest = split({}, {"q": (scale, bias, turn)}, SITES)
    assert groups[0].biases == (160, None)
    assert groups[0].scales == ()
    assert fused == {"q": (bias,)}
    assert rest == {"q": (scale, turn)}


def test_what_is_no_row_of_the_output_stays_an_operator() -> None:
    ops: Mapping[str, tuple[OpLayout, ...]] = {
        "norm": (op("output_scale", 0, 8),),
        "q": (op("input_scale", 32, 8), op("bias", 64, 9)),
        "k": (op("bias", 96, 4, "shared"), op("bias", 128, 4)),
    }
    groups, fused, rest = split(LOW_RANK, ops, SITES)
    assert groups[0].biases == (None, 128)
    assert fused == {"k": (ops["k"][1],)}
    assert rest == {"norm": ops["norm"], "q": ops["q"], "k": (ops["k"][0],)}


def test_only_scales_conflict_and_only_with_operators_at_the_same_module() -> None:
    scale, bias = {"q": (op("output_scale", 0, 6),)}, {"q": (op("bias", 0, 6),)}
    turn, sparse = (op(kind, 0, 6) for kind in ("pair_rotation", "sparse"))
    assert conflict(scale, {"q": (turn,)})
    assert conflict(scale, {"q": (sparse,)})
    assert not conflict(bias, {"q": (turn,)})
    assert not conflict(scale, {"k": (turn,)})
    assert conflict(scale, {"q": (op("input_scale", 0, 8),)})  # no sum with it: both are to be added whole


def test_a_scale_needs_a_whole_beside_what_it_reads() -> None:
    scale, bias = {"q": (op("output_scale", 0, 6),)}, {"q": (op("bias", 0, 6),)}
    turn = op("input_rotation", 0, 8)
    assert needs_whole(scale, {"q": (turn,)})
    assert needs_whole(scale, {"q": (op("replacement", 0, 6),)})
    assert not needs_whole(scale, {"k": (turn,)})
    assert not needs_whole(bias, {"q": (turn,)})
