"""Deltas of full rank from bases that all modules and adapters share, each adapter with scales of its own."""

from collections.abc import Sequence

import torch

_PIECE = 1024  # rows of a matrix in fp32 at a time


def shared_bases(
    x: torch.Tensor,
    _: torch.Tensor | None,
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    d: torch.Tensor,
    scale: torch.Tensor,
    out_features: int,
) -> torch.Tensor:
    """Return `b h` with `h[k, n] = d[k, n] Σ_j a[k, j] scale[n, j] x[j]`, or its transpose where out < in.

    x: (rows, in). a: (rank, at least the narrower width). b: (at least the wider width, at least rank · bases). d:
    (rank, bases). scale: (bases, the narrower width). Returns (rows, out_features).
    """
    return scaled_bases(x[None], a, b, [d], [scale], out_features)[0]


def scaled_bases(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    d: Sequence[torch.Tensor],
    scale: Sequence[torch.Tensor],
    out_features: int,
) -> torch.Tensor:
    """Return `shared_bases` of several segments with scales of their own, reading b once for all of them.

    x: (segments, rows, in). d, scale: one for each segment. Returns (segments, rows, out_features).
    """
    width, narrow = x.shape[-1], scale[0].shape[1]
    a, b = a[:, :narrow], b[: max(width, out_features), : d[0].numel()]
    if width == narrow:
        inner = [narrow_in(rows, a, *own) for rows, *own in zip(x, d, scale, strict=True)]
        return torch.stack(inner) @ b.T
    return torch.stack([narrow_out(h, a, *own) for h, *own in zip(_times(x, b), d, scale, strict=True)])


def narrow_in(x: torch.Tensor, a: torch.Tensor, d: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `h[k, n] = d[k, n] Σ_j a[k, j] scale[n, j] x[j]`, as (rows, rank · bases).

    Few rows are each multiplied by `a`. For many, the whole matrix is made first, which is as large as that product
    would be. Neither is kept.
    """
    if x.shape[0] >= scale.shape[0]:
        return x @ _whole(a, d, scale).T
    return ((x[:, None] * a) @ scale.T * d).flatten(1)


def narrow_out(h: torch.Tensor, a: torch.Tensor, d: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `Σ_kn a[k, j] scale[n, j] d[k, n] h[k, n]`, as (rows, narrow). h: (rows, rank · bases)."""
    if h.shape[0] >= scale.shape[0]:
        return _times(h, _whole(a, d, scale))
    return _times(h.unflatten(-1, d.shape) * d, scale).mul_(a).sum(1)


def _times(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `x @ b`, on a CPU by pieces in fp32: it multiplies untransposed 16-bit matrices entry by entry."""
    if x.device.type != "cpu" or x.element_size() > 2:
        return x @ b
    pieces = zip(x.split(_PIECE, dim=-1), b.split(_PIECE), strict=True)
    return torch.stack([part.float() @ rows.float() for part, rows in pieces]).sum(0).to(x.dtype)


def _whole(a: torch.Tensor, d: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the matrix that scales and bases make, (rank · bases, narrow)."""
    return (d[:, :, None] * a[:, None] * scale).flatten(0, 1)
