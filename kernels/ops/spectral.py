"""Deltas that are sparse or diagonal between Fourier transforms: nothing of the weight's size is made or read.

Transforms run in fp32 or wider, since 16-bit ones do not exist for every width. The terms keep that type, so that they
are rounded once, where they are added.
"""

import torch
import torch.nn.functional as F


def spectral(
    x: torch.Tensor,
    _: torch.Tensor | None,
    *,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    out_features: int,
) -> torch.Tensor:
    """Return `scale · F(h)` with `h[u] = Σ values[k] X[columns[k]]` over k in [starts[u], starts[u + 1]).

    X is the transform of x, and F the real transform back from half of a spectrum, without normalisation. x: (rows,
    in). starts: (out_features // 2 + 2,). columns, values: (n,). Returns (rows, out_features).
    """
    return spectra(x[None], starts, columns, wide(values) * scale, out_features)[0]


def spectra(
    x: torch.Tensor, starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, out_features: int
) -> torch.Tensor:
    """Return `spectral` of several segments, whose entries follow each other.

    x: (segments, rows, in). starts: (segments · half + 1,). Entry k of segment p reads place `columns[k] · segments +
    p`, which `columns` holds already. Bags are summed in order, each by one thread, so that a GPU needs no atomics.
    """
    table = torch.view_as_real(torch.fft.fft(wide(x)).permute(2, 0, 1).contiguous()).view(-1, 2 * x.shape[1])
    weights = values.to(table.dtype)
    bags = F.embedding_bag(columns, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)
    half = torch.view_as_complex(bags.view(x.shape[0], -1, x.shape[1], 2)).mT
    waves: torch.Tensor = torch.fft.irfft(half, n=out_features, norm="forward")
    return waves


def circulant(x: torch.Tensor, _: torch.Tensor | None, *, kernel: torch.Tensor, scale: float) -> torch.Tensor:
    """Return `y[o, t] = scale · Σ_n Σ_j kernel[o, n, (j - t) mod size] x[n, j]`, by one product a frequency.

    x: (rows, in). kernel: (out / size, in / size, size). Returns (rows, out).
    """
    return circulants(x[None], transformed(kernel[None], scale), kernel.shape[-1])[0]


def transformed(kernels: torch.Tensor, scale: float) -> torch.Tensor:
    """Transform kernels (segments, out / size, in / size, size) for `circulants`.

    Returns (segments, frequencies, in / size, out / size).
    """
    spectrum: torch.Tensor = torch.fft.rfft(wide(kernels) * scale)
    return spectrum.permute(0, 3, 2, 1).conj().resolve_conj().contiguous()


def circulants(x: torch.Tensor, weights: torch.Tensor, size: int) -> torch.Tensor:
    """Return `circulant` of several segments.

    x: (segments, rows, in). weights: `transformed`. Returns (segments, rows, out).
    """
    blocks = torch.fft.rfft(wide(x).unflatten(-1, (-1, size))).permute(0, 3, 1, 2)
    products = torch.matmul(blocks, weights).permute(0, 2, 3, 1)
    turned: torch.Tensor = torch.fft.irfft(products, n=size)
    return turned.flatten(-2)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Convert to fp32, or keep a wider type."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
