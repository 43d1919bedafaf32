"""Every kind of primitive as ranks have it: their outputs side by side, or their sum, are the whole one's."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.adapters import primitives as kinds
from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.adapters.primitives import Primitive
from peftserve.kernels.ops.formulas import FORMULAS, Stage
from peftserve.server.engine.parallel.cuts import Cut, Features, even, packed
from peftserve.server.engine.parallel.slices import SLICERS, slice_primitive, unshared

IN, OUT = 24, 36
Draw = Callable[..., torch.Tensor]


def _sparse(draw: Draw, count: int) -> kinds.Sparse:
    rows = draw(count).abs().mul(OUT / 4).long().clamp(max=OUT - 1).sort().values
    columns = draw(count).abs().mul(IN / 4).int().clamp(max=IN - 1)
    return kinds.Sparse(kinds.Sparse.row_starts(rows, OUT), columns, draw(count))


def _spectral(draw: Draw, count: int) -> kinds.Spectral:
    starts = torch.linspace(0, count, OUT // 2 + 2).int()
    return kinds.Spectral(starts, torch.arange(count, dtype=torch.int32) % IN, draw(count), 0.5, OUT)


MAKERS: dict[str, Callable[[Draw, int], Primitive]] = {
    "low_rank": lambda draw, n: kinds.LowRank(draw(n, IN), draw(OUT, n)),
    "shared_low_rank": lambda draw, n: kinds.SharedLowRank(draw(n, IN + 3), draw(OUT + 5, n), draw(n), draw(OUT)),
    "shared_bases": lambda draw, n: kinds.SharedBases(
        draw(n, IN + 3), draw(OUT + 5, n * 5), draw(n, 5), draw(5, IN), OUT
    ),
    "routed_low_rank": lambda draw, n: kinds.RoutedLowRank(
        draw(n + 1, 3, IN), draw(n + 1, 3, OUT), draw(n + 1, IN), 2, 0.5
    ),
    "input_scale": lambda draw, n: kinds.InputScale(draw(IN)),
    "output_scale": lambda draw, n: kinds.OutputScale(draw(OUT)),
    "bias": lambda draw, n: kinds.Bias(draw(OUT)),
    "input_rotation": lambda draw, n: kinds.InputRotation(draw(6, 4, 4)),
    "pair_rotation": lambda draw, n: kinds.PairRotation(draw(OUT), draw(OUT), 6),
    "parallel_bottleneck": lambda draw, n: kinds.ParallelBottleneck(
        draw(n, 10), draw(n), draw(OUT, n), draw(OUT), "tanh", "norm"
    ),
    "sparse": lambda draw, n: _sparse(draw, 9 * n),
    "kronecker": lambda draw, n: kinds.Kronecker(draw(9, 6), draw(4, 4)),
    "spectral": lambda draw, n: _spectral(draw, 8 * n),
    "circulant": lambda draw, n: kinds.Circulant(draw(9, 6, 4), 0.5),
    "dense": lambda draw, n: kinds.Dense(draw(OUT, IN)),
}
CUTS = {
    "columns": Cut(outputs=even(OUT, 2, "it")),
    "columns of three": Cut(outputs=even(OUT, 3, "it")),
    "packed columns": Cut(outputs=packed([12, 24], 2, "it")),
    "rows": Cut(inputs=even(IN, 2, "it")),
    "rows of three": Cut(inputs=even(IN, 3, "it")),
}
NOT_DIVIDED = {("routed_low_rank", "rows"), ("routed_low_rank", "rows of three")}


def _terms(primitive: Primitive, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    own = {f.name: getattr(primitive, f.name) for f in fields(primitive)}
    result: torch.Tensor = FORMULAS[primitive.kind].function(x, y, **own)
    return result


def _part(tensor: torch.Tensor, features: Features | None, rank: int) -> torch.Tensor:
    return tensor if features is None else tensor[:, features[rank]]


def _put(parts: list[torch.Tensor], features: Features | None, width: int) -> torch.Tensor:
    """Put features of ranks at their places; None: every rank has all of them, and the same."""
    if features is None:
        for part in parts:
            assert torch.equal(part, parts[0])
        return parts[0]
    whole = torch.full((len(parts[0]), width), float("nan"), dtype=parts[0].dtype)
    for part, own in zip(parts, features, strict=True):
        whole[:, own] = part
    return whole


def _together(primitive: Primitive, cut: Cut, x: torch.Tensor, ys: list[torch.Tensor]) -> torch.Tensor:
    """Return what the ranks' slices give together. ys: each rank's part of the module's output."""
    slices = slice_primitive(unshared(primitive, (IN, OUT)), cut, len(ys))
    shapes = {tuple((name, tensor.shape) for name, tensor in own.tensors().items()) for own in slices}
    assert len(shapes) == 1, "ranks have slices of other shapes"
    reads_another = bool(getattr(primitive, "source", ""))
    xs = [x if reads_another else _part(x, cut.inputs, rank) for rank in range(len(ys))]
    given_ = [_terms(own, x, y) for own, x, y in zip(slices, xs, ys, strict=True)]
    if FORMULAS[primitive.kind].stage is Stage.INPUT:
        return _put(given_, cut.inputs, IN)
    return _put(given_, cut.outputs, OUT) if cut.inputs is None else torch.stack(given_).sum(0)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 20), size=st.integers(1, 5))
@pytest.mark.parametrize("where", CUTS)
@pytest.mark.parametrize("kind", MAKERS)
def test_slices_together_are_the_whole(kind: str, where: str, seed: int, size: int) -> None:
    if (kind, where) in NOT_DIVIDED:
        return
    cut, generator = CUTS[where], torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    primitive = MAKERS[kind](draw, size)
    x, y = draw(7, 10 if kind == "parallel_bottleneck" else IN), draw(7, OUT)
    ranks = len(cut.inputs or cut.outputs or ())
    pieces = [draw(7, OUT) for _ in range(ranks - 1)]
    sums = [*pieces, y - sum(pieces, torch.zeros_like(y))]
    ys = [_part(y, cut.outputs, rank) for rank in range(ranks)] if cut.inputs is None else sums
    expected = _terms(primitive, x, y)
    rounding = 2e-6 * max(float(expected.abs().max()), 1.0)  # some kinds compute in float32
    torch.testing.assert_close(_together(primitive, cut, x, ys), expected, rtol=0, atol=rounding)


def test_every_kind_is_divided_or_refused() -> None:
    others = {"replacement", "rows", "bottleneck", "expert_low_rank"}
    assert MAKERS.keys() | others == {kind for kind in FORMULAS if kind != "chain"}
    assert {kind.kind for kind in SLICERS} <= MAKERS.keys() | {"replacement", "expert_low_rank"}


@pytest.mark.parametrize("where", CUTS)
def test_a_replacement_is_cut_as_the_module(where: str) -> None:
    cut, whole = CUTS[where], kinds.Replacement(torch.randn(OUT, IN), torch.randn(OUT))
    ranks = len(cut.inputs or cut.outputs or ())
    x = torch.randn(5, IN)
    given_ = [
        torch.nn.functional.linear(_part(x, cut.inputs, rank), own.weight, own.bias)
        for rank, own in enumerate(slice_primitive(whole, cut, ranks))
        if isinstance(own, kinds.Replacement) and own.weight is not None
    ]
    expected = torch.nn.functional.linear(x, whole.weight, whole.bias)  # type: ignore[arg-type]
    got = _put(given_, cut.outputs, OUT) if cut.inputs is None else torch.stack(given_).sum(0)
    torch.testing.assert_close(got, expected)


def test_experts_are_cut_inside_each_expert() -> None:
    whole = kinds.ExpertLowRank(torch.randn(4, 2, IN), torch.randn(4, OUT, 2), "gate_up_proj")
    x = torch.randn(4, 5, IN)
    expected = x @ whole.a.mT @ whole.b.mT
    for cut in CUTS.values():
        slices: list[Any] = slice_primitive(whole, cut, len(cut.inputs or cut.outputs or ()))
        xs = [x if cut.inputs is None else x[..., own] for own in cut.inputs or [None] * len(slices)]
        outs = [own @ part.a.mT @ part.b.mT for own, part in zip(xs, slices, strict=True)]
        if cut.outputs is None:
            torch.testing.assert_close(torch.stack(outs).sum(0), expected)
        else:
            torch.testing.assert_close(torch.cat(outs, -1), expected[..., torch.cat(cut.outputs)])


@pytest.mark.parametrize(
    ("primitive", "where", "said"),
    [
        (
            kinds.RoutedLowRank(torch.zeros(2, 1, IN), torch.zeros(2, 1, OUT), torch.zeros(2, IN), 1, 1.0),
            "rows",
            "router",
        ),
        (kinds.PairRotation(torch.zeros(OUT), torch.zeros(OUT), 36), "columns", "blocks of 36 features"),
        (kinds.InputRotation(torch.zeros(3, 8, 8)), "rows", "blocks of 8 features"),
        (kinds.InputRotation(torch.zeros(1, 8, 8)), "rows", "blocks of 8 features"),
        (
            kinds.Bottleneck(torch.zeros(2, OUT), torch.zeros(2), torch.zeros(OUT, 2), torch.zeros(OUT), "relu"),
            "rows",
            "bottleneck cannot be divided",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused_with_the_reason(primitive: Primitive, where: str, said: str) -> None:
    with pytest.raises(UnsupportedAdapter, match=said):
        slice_primitive(primitive, CUTS[where], 2)
