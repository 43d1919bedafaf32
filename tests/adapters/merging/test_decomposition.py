"""Factors of large matrices against the full decomposition, in the error that is left."""

import pytest
import torch

from peftserve.adapters.merging import decomposition
from peftserve.adapters.merging.decomposition import factorise

RANK = 6


def matrices() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    low = draw(90, 12) @ draw(12, 70)
    return {
        "low rank": low,
        "pruned": low * (low.abs() > low.abs().median()),
        "noise": draw(90, 70),  # no value stands out
        "tall": draw(300, 40) * torch.logspace(0, -4, 40),
        "rank below": draw(90, 3) @ draw(3, 70),
        "zero": torch.zeros(90, 70),
    }


@pytest.mark.parametrize("name", matrices())
def test_the_search_leaves_no_more_than_the_full_decomposition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = matrices()[name]
    monkeypatch.setattr(decomposition, "DENSE_LIMIT", 0)
    a, b = factorise(matrix, RANK, torch.Generator().manual_seed(2))
    assert (a.shape, b.shape) == ((RANK, matrix.shape[1]), (matrix.shape[0], RANK))
    left = torch.linalg.norm(matrix.double() - b.double() @ a.double())
    best = torch.linalg.svdvals(matrix.double())[RANK:].square().sum().sqrt()
    assert left <= best * 1.001 + 1e-5 * torch.linalg.norm(matrix)
    again = factorise(matrix, RANK, torch.Generator().manual_seed(2))
    assert torch.equal(a, again[0])
    assert torch.equal(b, again[1])


def test_small_matrices_and_large_ranks_are_decomposed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = matrices()["noise"]
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    for limit, rank in ((1024, RANK), (0, 20), (0, 80)):
        monkeypatch.setattr(decomposition, "DENSE_LIMIT", limit)
        a, b = factorise(matrix, rank, torch.Generator())
        kept = min(rank, 70)
        assert torch.equal(a[:kept], vh[:rank])
        assert torch.equal(b[:, :kept], u[:, :rank] * s[:rank])
        assert not a[kept:].any()
