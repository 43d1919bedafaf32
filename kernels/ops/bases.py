"""Deltas of full rank out of bases that all modules and adapters share, scaled by each adapter."""

import torch


def shared_bases(
    x: torch.Tensor, y: torch.Tensor, *, a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """`b h`, `h[k, n] = d[k, n] Σ_j a[k, j] scale[n, j] x[j]`; with out < in the transpose of that.

    x: (rows, in). a: (rank, at least the narrower width). b: (at least the wider width, at least rank · bases).
    d: (rank, bases). scale: (bases, the narrower width). Returns (rows, out).
    """
    a, b = a[:, : scale.shape[1]], b[: max(x.shape[-1], y.shape[-1]), : d.numel()]
    if x.shape[-1] == scale.shape[1]:
        return narrow_in(x, a, d, scale) @ b.T
    return narrow_out(x @ b, a, d, scale)


def narrow_in(x: torch.Tensor, a: torch.Tensor, d: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`h[k, n] = d[k, n] Σ_j a[k, j] scale[n, j] x[j]`, as (rows, rank · bases).

    Of few rows it multiplies each of them by `a`; of many it makes the whole matrix first, which is as large as that
    product then would be. Neither is kept.
    """
    if x.shape[0] >= scale.shape[0]:
        return x @ _whole(a, d, scale).T
    return ((x[:, None] * a) @ scale.T * d).flatten(1)


def narrow_out(h: torch.Tensor, a: torch.Tensor, d: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`Σ_kn a[k, j] scale[n, j] d[k, n] h[k, n]`, as (rows, narrow). h: (rows, rank · bases)."""
    if h.shape[0] >= scale.shape[0]:
        return h @ _whole(a, d, scale)
    rows: torch.Tensor = (h.unflatten(-1, d.shape) * d) @ scale
    return rows.mul_(a).sum(1)


def _whole(a: torch.Tensor, d: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(rank · bases, narrow)."""
    return (d[:, :, None] * a[:, None] * scale).flatten(0, 1)
