"""Where the linears of single experts are in a base's stacked weights."""

import dataclasses
from typing import Any

import pytest
import torch

from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.adapters.peft.base import Base
from peftserve.adapters.peft.single_experts import single_experts
from peftserve.adapters.peft.tensors import Checkpoint
from peftserve.adapters.primitives import ExpertLowRank, LowRank
from peftserve.adapters.sites import ExpertParameter, Site, SiteKind, SiteTable

PLACE = "model.layers.0.mlp.experts"
GATED = (ExpertParameter("gate_up_proj", 3, 4, 10), ExpertParameter("down_proj", 3, 5, 4))
UNGATED = (ExpertParameter("up_proj", 3, 4, 5), ExpertParameter("down_proj", 3, 5, 4))


def base(parameters: tuple[ExpertParameter, ...], **options: Any) -> Base:
    site = Site(PLACE, SiteKind.EXPERTS, 4, 4, parameters=parameters, **options)
    router = Site("model.layers.0.mlp.gate", SiteKind.INNER, 4, 3)
    return Base(SiteTable({site.name: site, router.name: router}), torch.float32)


def checkpoint(*linears: str) -> Checkpoint:
    return Checkpoint({f"base_model.model.{PLACE}.1.{linear}.lora_A.weight": torch.zeros(1) for linear in linears})


@pytest.mark.parametrize(
    ("parameters", "linears", "widths"),
    [
        (GATED, ("gate_proj", "up_proj", "down_proj"), [(4, 5), (4, 5), (5, 4)]),
        (GATED, ("w1", "w3", "w2"), [(4, 5), (4, 5), (5, 4)]),
        (UNGATED, ("up_proj", "down_proj"), [(4, 5), (5, 4)]),
    ],
)
def test_linears_by_their_old_names(
    parameters: tuple[ExpertParameter, ...], linears: tuple[str, ...], widths: list[tuple[int, int]]
) -> None:
    found = single_experts(checkpoint(linears[-1]), base(parameters), plain=True)
    assert {*found.parts} == {f"{PLACE}.{expert}.{linear}" for expert in range(3) for linear in linears}
    sites = [found.base.table.sites[f"{PLACE}.2.{linear}"] for linear in linears]
    assert [(site.kind, site.in_features, site.out_features) for site in sites] == [
        (SiteKind.LINEAR, *width) for width in widths
    ]


def test_ranks_of_their_own_are_one_below_the_other() -> None:
    found = single_experts(checkpoint("w1"), base(GATED), plain=True)
    gate = LowRank(torch.ones(2, 4), torch.full((5, 2), 2.0))
    up = LowRank(torch.full((1, 4), 3.0), torch.full((5, 1), 4.0))
    joined = found.joined({f"{PLACE}.0.w1": (gate,), f"{PLACE}.2.w3": (up,), "other": (gate,)})
    ((primitive,), (kept,)) = joined[PLACE], joined["other"]
    assert kept is gate
    assert isinstance(primitive, ExpertLowRank)
    assert (primitive.a.shape, primitive.b.shape) == ((3, 3, 4), (3, 10, 3))
    deltas = primitive.b @ primitive.a
    torch.testing.assert_close(deltas[0], torch.cat([gate.b @ gate.a, torch.zeros(5, 4)]))
    torch.testing.assert_close(deltas[2], torch.cat([torch.zeros(5, 4), up.b @ up.a]))
    assert deltas[1].count_nonzero() == 0


def test_a_router_is_the_linear_that_it_was() -> None:
    name = "model.layers.0.mlp.gate"
    tensors = Checkpoint({f"base_model.model.{name}.lora_A.weight": torch.zeros(1)})
    assert single_experts(tensors, base(GATED), plain=True).base.table.sites[name].kind is SiteKind.LINEAR
    assert single_experts(checkpoint("w1"), base(GATED), plain=True).base.table.sites[name].kind is SiteKind.INNER
    with pytest.raises(UnsupportedAdapter, match="only plain LoRA"):
        single_experts(tensors, base(GATED), plain=False)


def test_experts_that_are_stacked_otherwise_are_refused() -> None:
    other = dataclasses.replace(base(GATED, transposed=True))
    with pytest.raises(UnsupportedAdapter, match="transposed"):
        single_experts(checkpoint("gate_proj"), other, plain=True)
    assert single_experts(Checkpoint({}), other, plain=False).parts == {}
