"""Matrices brought back to two factors by the singular value decomposition.

    M ≈ B A,   A: (rank, in), B: (out, rank),   A = V_rankᵀ, B = U_rank Σ_rank

Nothing is closer to M at this rank. The factors have zeros where the rank is larger than the matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DENSE_LIMIT = 1024
"""Up to this size on both sides a product is multiplied out and decomposed as PEFT does, which gives its signs."""

_SMALL_PART = 4  # a rank of this part of the sides is small
_OVERSAMPLED = 16
_MAX_ROUNDS = 60
_SETTLED = 1e-7


def factorise(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return A and B of a matrix (out, in). generator: of where the search in a large one begins."""
    if max(matrix.shape) <= DENSE_LIMIT or _SMALL_PART * rank > min(matrix.shape):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        u, s, vh = _leading(matrix, rank, generator)
    return _cut(u, s, vh, rank)


def factorise_product(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B of the product b a, without multiplying it out. b: (out, inner). a: (inner, in)."""
    left, small_b = torch.linalg.qr(b.double())
    right, small_a = torch.linalg.qr(a.double().T)
    u, s, vh = torch.linalg.svd(small_b @ small_a.T, full_matrices=False)
    new_a, new_b = _cut(left @ u, s, vh @ right.T, rank)
    return new_a.to(a.dtype), new_b.to(b.dtype)


def span(bs: Sequence[Tensor]) -> Tensor:
    """Return an orthonormal basis (out, n) of what the columns of matrices (out, ...) span, in their type."""
    u, s, _ = torch.linalg.svd(torch.cat(list(bs), dim=1), full_matrices=False)
    basis: Tensor = u[:, s > s[:1] * 1e-12]
    return basis


def padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors of this rank with the same product, by zeros at the end."""
    lacking = rank - a.shape[0]
    return torch.nn.functional.pad(a, (0, 0, 0, lacking)), torch.nn.functional.pad(b, (0, lacking))


def _leading(matrix: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, Σ and Vᵀ of the largest singular values, a few more than `rank`.

    Subspace iteration (Halko, Martinsson & Tropp 2011, arXiv:0909.4061) until the part of the matrix that `rank` values
    hold grows no more: what is still open then are directions that hold the same. A full decomposition of a delta of
    4096 x 4096 takes a minute, this a few seconds.
    """
    start = torch.randn(matrix.shape[1], rank + _OVERSAMPLED, generator=generator, dtype=matrix.dtype)
    right, held = torch.linalg.qr(start).Q, 0.0
    for _ in range(_MAX_ROUNDS):
        left = torch.linalg.qr(matrix @ right).Q
        right, core = torch.linalg.qr(matrix.T @ left)
        before, held = held, float(torch.linalg.svdvals(core)[:rank].double().square().sum())
        if held - before <= _SETTLED * held:
            break
    u, s, vh = torch.linalg.svd(core.T)
    return left @ u, s, vh @ right.T


def _cut(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    return padded(vh[:rank], u[:, :rank] * s[:rank], rank)
