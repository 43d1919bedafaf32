"""The smallest primitive for a dense delta: low-rank factors, its non-zeros, or the whole matrix."""

import torch

from ..primitives import Dense, LowRank, Primitive, Sparse
from .base import NamedTensor

_OVERSAMPLED = 8  # columns of the sketch beyond the bound, so that its last directions are exact
_EXACT = 1e-5  # relative error of factors: below it is the rounding of float32
_INDEX_BYTES = 8  # counted for a non-zero beside its value: its column, and its share of the row starts
_SCATTERED = 4  # times that non-zeros must be smaller than the matrix: each costs more than an entry of a GEMM


def compacted(delta: NamedTensor, bound: int | None, dtype: torch.dtype) -> Primitive:
    """Return the smallest primitive that is this delta. Raises InvalidAdapter if it is not finite.

    delta: (out_features, in_features) in float32. bound: on its rank, known from the method; None if it has none.
    """
    exact = NamedTensor(delta.key, delta.tensor).converted(torch.float32)
    nonzeros = int(exact.count_nonzero())
    if not nonzeros:
        return LowRank(exact.new_zeros(1, exact.shape[1], dtype=dtype), exact.new_zeros(exact.shape[0], 1, dtype=dtype))
    dense, sparse = exact.numel() * dtype.itemsize, _SCATTERED * nonzeros * (_INDEX_BYTES + dtype.itemsize)
    factors = None if bound is None else factored(exact, bound)
    low_rank = dense if factors is None else sum(factor.numel() for factor in factors) * dtype.itemsize
    if factors is not None and low_rank < min(dense, sparse):
        a, b = (NamedTensor(delta.key, factor).converted(dtype) for factor in factors)
        return LowRank(a, b)
    return _sparse(delta.key, exact, dtype) if sparse < dense else Dense(delta.converted(dtype))


def factored(w: torch.Tensor, bound: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Factor w into a: (rank, in_features) and b: (out_features, rank) with b a = w; None if its rank is over `bound`.

    A sketch finds the column space (Halko et al. 2011, arXiv:0909.4061), which takes O(out · in · bound) where a full
    SVD takes minutes per module; the error of the sketch is measured.
    """
    w = w.double()
    columns = min(bound + _OVERSAMPLED, *w.shape)
    generator = torch.Generator(device=w.device).manual_seed(0)
    sketch = torch.randn(w.shape[1], columns, generator=generator, dtype=w.dtype, device=w.device)
    basis = torch.linalg.qr(w @ sketch).Q
    u, s, vh = torch.linalg.svd(basis.T @ w, full_matrices=False)
    rank = max(1, min(bound, int((s > s[0] * 1e-7).sum())))
    root = s[:rank].sqrt()
    a, b = root[:, None] * vh[:rank], (basis @ u[:, :rank]) * root
    return (a, b) if (w - b @ a).norm() <= _EXACT * w.norm() else None


def _sparse(key: str, w: torch.Tensor, dtype: torch.dtype) -> Sparse:
    rows, columns = w.nonzero(as_tuple=True)
    return Sparse(Sparse.row_starts(rows, len(w)), columns.int(), NamedTensor(key, w[rows, columns]).converted(dtype))
