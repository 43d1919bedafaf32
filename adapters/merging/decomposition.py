"""Matrices brought back to two factors by the singular value decomposition.

    M ≈ B A,   A: (rank, in), B: (out, rank),   A = V_rankᵀ, B = U_rank Σ_rank

Nothing is closer to M at this rank. The factors have zeros where the rank is larger than the matrix.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DENSE_LIMIT = 1024
"""Up to this size on both sides a product is multiplied out and decomposed as PEFT does, which gives its signs."""


def factorise(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B of a matrix (out, in)."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
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


def _cut(u: Tensor, s: Tensor, vh: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    return padded(vh[:rank], u[:, :rank] * s[:rank], rank)
