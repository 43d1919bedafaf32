from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
import torch
from torch.nn.functional import linear

from peftserve.adapters import primitives as p
from peftserve.adapters.sites import Site, SiteKind
from peftserve.kernels.bypass.layout import RowSet, Segment
from peftserve.kernels.ops.formulas import FORMULAS, Op, Stage
from peftserve.kernels.ops.side import SideOps
from peftserve.server.checkpoint.folding import FOLDABLE, Affine, Share, fold, fold_experts, fold_norm
from tests.server.engine.model.test_pairs import IN, MAKERS, OUT, WIDE_MAKERS, WIDER

HEAD = Site("m", SiteKind.HEAD, IN, OUT)
FOLDED = {
    name: make
    for name, make in {**MAKERS, **WIDE_MAKERS}.items()
    if all(primitive.kind in FOLDABLE for primitive in make(torch.zeros))
}


def drawn(seed: int) -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: 0.5 * torch.randn(*shape, generator=generator)


def op(primitive: p.Primitive, base: Affine) -> Op:
    if not isinstance(primitive, p.Replacement):
        return Op(primitive.kind, vars(primitive))
    weight = base.weight if primitive.weight is None else primitive.weight
    bias = base.bias if primitive.bias is None else primitive.bias
    if bias is not None and len(bias) < len(weight):
        bias = torch.nn.functional.pad(bias, (0, len(weight) - len(bias)))
    return Op(primitive.kind, {"module": lambda x: linear(x, weight, bias), "width": len(weight)})


def served(x: torch.Tensor, base: Affine, shares: Sequence[Share]) -> torch.Tensor:
    """What a step of the engine gives for rows that have this mixture."""
    side = SideOps({"m": RowSet.TOKENS})
    for slot, share in enumerate(shares):
        side.attach(slot, {"m": [op(primitive, base) for primitive in share.primitives]})
    segments = [Segment(slot, share.weight, 0, len(x)) for slot, share in enumerate(shares)]
    side.begin(segments, segments)
    plan = side.plans["m"]

    def module(rows: torch.Tensor) -> torch.Tensor:
        return linear(rows, base.weight, base.bias)

    return plan.after(x, module(plan.before(x)), module)


def test_every_primitive_of_a_linear_that_is_affine_is_folded() -> None:
    known = {primitive.kind for make in FOLDED.values() for primitive in make(torch.zeros)}
    inside = {kind for kind, formula in FORMULAS.items() if formula.stage is Stage.INSIDE}
    assert known == FOLDABLE - inside
    assert set(FORMULAS) - FOLDABLE == {"bottleneck", "parallel_bottleneck", "routed_low_rank", "chain"}


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_folded_mixture_is_what_a_step_gives(has_bias: bool) -> None:
    """Every primitive alone at two weights, and beside every other: those that no sum is made of, too."""
    draw = drawn(1)
    base, x = Affine(draw(OUT, IN), draw(OUT) if has_bias else None), draw(7, IN)
    made = {name: make(draw) for name, make in FOLDED.items()}
    mixtures = [[Share(weight, made[name])] for name in made for weight in (1.0, 0.3)]
    mixtures += [[Share(0.7, made[one]), Share(-0.4, made[other])] for one, other in combinations(made, 2)]
    mixtures += [[Share(1.0, made[one]), Share(1.0, made[other])] for one, other in combinations(made, 2)]
    for shares in mixtures:
        wanted = served(x, base, shares)
        folded = fold(HEAD, base.copy(), shares)
        got = linear(x, folded.weight, folded.bias)
        kinds = [[primitive.kind for primitive in share.primitives] for share in shares]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-3, msg=lambda m, k=kinds: f"{k}: {m}")  # type: ignore[misc]


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_a_scale_of_the_base_s_rows_leaves_those_of_a_larger_vocabulary(weight: float) -> None:
    """So is DoRA on a resized head: of new rows all is in the replacement."""
    draw = drawn(4)
    base, x = Affine(draw(OUT, IN), draw(OUT)), draw(7, IN)
    larger = (p.Replacement(draw(WIDER, IN), draw(WIDER)), p.OutputScale(draw(OUT)))
    for shares in ([Share(weight, larger)], [Share(weight, larger), Share(1.0, (p.OutputScale(draw(OUT)),))]):
        folded = fold(HEAD, base.copy(), shares)
        got = linear(x, folded.weight, folded.bias)
        torch.testing.assert_close(got, served(x, base, shares), rtol=1e-4, atol=1e-3)


def test_an_embedding_keeps_its_scale_out_of_what_is_added() -> None:
    draw, ids = drawn(2), torch.arange(OUT)
    site = Site("e", SiteKind.EMBEDDING, OUT, IN, embed_scale=3.0)
    table, a, b, bias = draw(OUT, IN), draw(2, OUT), draw(IN, 2), draw(IN)
    replaced, rows = draw(OUT + 3, IN), draw(2, IN)
    shares = [
        Share(0.5, (p.LowRank(a, b), p.Bias(bias))),
        Share(0.25, (p.Replacement(replaced), p.TokenRows(torch.tensor([1, 4], dtype=torch.int32), rows))),
    ]
    folded = fold(site, Affine(table.T.clone()), shares)
    assert folded.weight.shape == (IN, OUT + 3)
    before = table * 3
    other = (replaced * 3).index_copy(0, torch.tensor([1, 4]), rows)
    wanted = before + 0.5 * (a.T @ b.T + bias) + 0.25 * (other[:OUT] - before)
    torch.testing.assert_close((folded.weight.T * 3)[ids], wanted, rtol=1e-4, atol=1e-4)


def test_experts_and_norms() -> None:
    draw = drawn(3)
    stored, a, b = draw(4, 6, 5), draw(4, 2, 5), draw(4, 6, 2)
    for transposed in (False, True):
        own = (stored.mT if transposed else stored).clone(memory_format=torch.contiguous_format)
        fold_experts(own, transposed, p.ExpertLowRank(a, b, "down_proj"), 0.5)
        torch.testing.assert_close(own.mT if transposed else own, stored + 0.5 * b @ a)
    norm, one, other = draw(5), draw(5), draw(5)
    folded = fold_norm(norm, [(0.5, one), (0.25, other), (1.0, None)])
    torch.testing.assert_close(folded, 0.25 * norm + 0.5 * one + 0.25 * other)
