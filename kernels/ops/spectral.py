"""Deltas that are sparse or diagonal between Fourier transforms: nothing of the weight's size is made or read.

Transforms run in fp32 or wider, since there are none of 16 bits for every width; the terms keep that type, so that they
are rounded once, where they are added.
"""

import torch
import torch.nn.functional as F


def spectral(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    starts: torch.Tensor,
    columns: torch.Tensor,
    values: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """`scale · F(h)`, `h[u] = Σ values[k] X[columns[k]]` over k in [starts[u], starts[u + 1]).

    X is the transform of x, and F the real transform back from half of a spectrum, without normalisation.
    x: (rows, in). starts: (out // 2 + 2,). columns, values: (n,). Returns (rows, out).
    A sum of bags: each h[u] is added up in order, by one thread, so there is nothing atomic on a GPU.
    """
    transformed = torch.fft.fft(wide(x))
    table = torch.view_as_real(transformed.t().contiguous()).flatten(1)
    bags = F.embedding_bag(
        columns, table, starts, mode="sum", per_sample_weights=values.to(table.dtype), include_last_offset=True
    )
    half = torch.view_as_complex(bags.view(-1, x.shape[0], 2)).t()
    waves: torch.Tensor = torch.fft.irfft(half, n=y.shape[-1], norm="forward")
    return waves * scale


def circulant(x: torch.Tensor, _: torch.Tensor, *, kernel: torch.Tensor, scale: float) -> torch.Tensor:
    """`y[o, t] = scale · Σ_n Σ_j kernel[o, n, (j - t) mod size] x[n, j]`, a product for each frequency of the blocks.

    x: (rows, in). kernel: (out / size, in / size, size). Returns (rows, out).
    """
    size = kernel.shape[-1]
    blocks = torch.fft.rfft(wide(x).unflatten(-1, (-1, size)))
    weights = torch.fft.rfft(wide(kernel)).conj()
    products = torch.bmm(blocks.permute(2, 0, 1), weights.permute(2, 1, 0))
    turned: torch.Tensor = torch.fft.irfft(products.permute(1, 2, 0), n=size)
    return turned.flatten(-2) * scale


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In fp32, or as it is where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
