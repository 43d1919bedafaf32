"""The methods that PEFT lacks, against plain formulas on whole deltas; and what holds for all of them."""

from collections.abc import Sequence

import numpy
import pytest
import torch

from peftserve.adapters.merging import methods
from peftserve.adapters.merging.entries import How
from peftserve.adapters.merging.kinds import KINDS
from peftserve.adapters.merging.methods import METHODS, Factors, Merged


def parts(*ranks: int, weights: Sequence[float] = (0.6, 0.4), size: tuple[int, int] = (20, 30)) -> list[Factors]:
    generator = torch.Generator().manual_seed(9)
    made = []
    for rank, weight in zip(ranks, weights, strict=False):
        a = torch.randn(rank, size[1], generator=generator)
        b = torch.randn(size[0], rank, generator=generator)
        made.append(Factors(a, b, torch.randn(size[0], generator=generator), 0.5 + rank / 10, weight))
    return made


def run(kind: str, given: Sequence[Factors], rank: int, density: float = 0.4) -> Merged:
    return METHODS[kind](given, rank, How(density, "total", torch.Generator().manual_seed(2)))


def product(merged: Merged) -> numpy.ndarray:
    return (merged.b.double() @ merged.a.double()).numpy()


def deltas(given: Sequence[Factors]) -> list[numpy.ndarray]:
    return [(part.b.double() @ part.a.double() * part.scaling).numpy() for part in given]


def nearest(matrix: numpy.ndarray, rank: int) -> numpy.ndarray:
    u, s, vh = numpy.linalg.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def test_every_kind_has_a_method() -> None:
    assert METHODS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_types_and_biases(kind: str) -> None:
    given = parts(3, 3)
    rank = 3 if kind in ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune") else 7
    merged = run(kind, given, rank, density=1.0)
    assert merged.bias is not None
    assert (merged.a.shape, merged.b.shape, merged.bias.shape) == ((rank, 30), (20, rank), (20,))
    assert {tensor.dtype for tensor in merged} == {torch.float32}
    assert run(kind, [Factors(p.a, p.b, None, p.scaling, p.weight) for p in given], rank).bias is None


def test_knots_is_ties_in_the_common_basis() -> None:
    """[Δ₁ Δ₂] = U Σ [V₁ V₂]ᵀ; ties of the Σ Vᵢᵀ; U times that. Signs of U change nothing."""
    given, density = parts(3, 5, weights=(0.6, -0.9)), 0.4
    both = deltas(given)
    u, s, vh = numpy.linalg.svd(numpy.concatenate(both, axis=1), full_matrices=False)
    aligned = [s[:8, None] * vh[:8, i * 30 : (i + 1) * 30] for i in range(2)]
    trimmed = []
    for one in aligned:
        least = sorted(abs(one.reshape(-1)))[-int(density * one.size)]
        trimmed.append(numpy.where(abs(one) >= least, one, 0))
    signs = numpy.where(sum(trimmed) >= 0, 1, -1)
    agreeing = [numpy.sign(one) == signs for one in trimmed]
    total = sum(part.weight * one * ok for part, one, ok in zip(given, trimmed, agreeing, strict=True))
    merged = u[:, :8] @ (total / numpy.maximum(sum(ok.astype(int) for ok in agreeing), 1))
    assert product(run("knots", given, 8)) == pytest.approx(merged, abs=1e-4)
    assert product(run("knots", given, 4)) == pytest.approx(nearest(merged, 4), abs=1e-4)
    assert product(run("knots", given, 12)) == pytest.approx(merged, abs=1e-4)
    zero = [Factors(p.a, torch.zeros_like(p.b), None, 1.0, 1.0) for p in given]
    assert not product(run("knots", zero, 8)).any()


def test_slerp_goes_along_the_arc() -> None:
    given = parts(3, 5, weights=(0.3, 0.7))
    first, second = deltas(given)
    cosine = (first * second).sum() / numpy.linalg.norm(first) / numpy.linalg.norm(second)
    angle = numpy.arccos(cosine)
    point = (numpy.sin(0.3 * angle) * first + numpy.sin(0.7 * angle) * second) / numpy.sin(angle)
    merged = run("slerp", given, 8)
    assert product(merged) == pytest.approx(point, abs=1e-4)
    assert product(run("slerp", given, 2)) == pytest.approx(nearest(point, 2), abs=1e-4)
    biases = [(p.bias * p.scaling).double().numpy() for p in given if p.bias is not None]
    assert merged.bias is not None
    assert merged.bias.double().numpy() == pytest.approx(
        (numpy.sin(0.3 * angle) * biases[0] + numpy.sin(0.7 * angle) * biases[1]) / numpy.sin(angle), abs=1e-4
    )


def test_slerp_is_straight_between_parallels() -> None:
    (one, _) = parts(3, 3)
    for factor in (2.0, -2.0, 0.0):
        other = Factors(one.a, one.b * factor, None, one.scaling, 0.7)
        line = deltas([one])[0] * (0.3 + 0.7 * factor)
        given = [Factors(one.a, one.b, None, one.scaling, 0.3), other]
        assert product(run("slerp", given, 6)) == pytest.approx(line, abs=1e-5)
    assert product(run("slerp", [given[0]], 6)) == pytest.approx(deltas([one])[0] * 0.3, abs=1e-5)


def test_a_large_svd_is_the_same_without_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    given = parts(3, 5, weights=(0.6, -0.9))
    dense = product(run("svd", given, 4))
    exact = sum(part.weight * delta for part, delta in zip(given, deltas(given), strict=True))
    assert dense == pytest.approx(nearest(exact, 4), abs=1e-4)
    monkeypatch.setattr(methods, "DENSE_LIMIT", 0)
    assert product(run("svd", given, 4)) == pytest.approx(dense, abs=1e-4)
    assert product(run("svd", given, 11)) == pytest.approx(exact, abs=1e-4)
