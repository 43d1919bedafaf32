"""Transforms against the sums that they stand for, in float64: any widths, any types, any number of rows."""

import math

import pytest
import torch

from peftserve.kernels.ops.spectral import circulant, spectral


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def waves(width: int, inputs: int, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the matrix of the frequencies, (width, inputs), one cosine after the other."""
    p, q = torch.arange(width, dtype=torch.float64)[:, None], torch.arange(inputs, dtype=torch.float64)
    w = torch.zeros(width, inputs, dtype=torch.float64)
    for u, v, value in zip(rows.tolist(), columns.tolist(), values, strict=True):
        times = 1 if u == 0 or 2 * u == width else 2
        w += times * value * torch.cos(2 * math.pi * (u * p / width - v * q / inputs))
    return w


@pytest.mark.parametrize(("width", "inputs"), [(8, 12), (9, 12), (12, 7), (1, 1), (60, 63)])
@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("tokens", [1, 5])
def test_spectral(width: int, inputs: int, count: int, tokens: int) -> None:
    rows = (torch.arange(count) * 5 % (width // 2 + 1)).sort().values
    columns = torch.arange(count, dtype=torch.int32) * 7 % inputs
    starts = torch.searchsorted(rows, torch.arange(width // 2 + 2), out_int32=True)
    x, values = draw(tokens, inputs), draw(count)
    got = spectral(x, None, starts=starts, columns=columns, values=values, scale=-0.5, out_features=width)
    torch.testing.assert_close(got, -0.5 * x @ waves(width, inputs, rows, columns, values).T)


def circulants(kernel: torch.Tensor) -> torch.Tensor:
    """Return the matrix of the blocks, entry by entry."""
    outputs, inputs, size = kernel.shape
    w = torch.empty(outputs * size, inputs * size, dtype=kernel.dtype)
    for i in range(outputs * size):
        for j in range(inputs * size):
            w[i, j] = kernel[i // size, j // size, (j % size - i % size) % size]
    return w


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 1), (3, 1, 5), (2, 2, 2), (4, 5, 1)])
@pytest.mark.parametrize("tokens", [1, 5])
def test_circulant(shape: tuple[int, int, int], tokens: int) -> None:
    kernel, x = draw(*shape), draw(tokens, shape[1] * shape[2])
    got = circulant(x, x, kernel=kernel, scale=0.25)
    torch.testing.assert_close(got, 0.25 * x @ circulants(kernel).T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_run_in_fp32(dtype: torch.dtype) -> None:
    x, kernel, values = draw(3, 12).to(dtype), draw(2, 3, 4).to(dtype), draw(9).to(dtype)
    got = circulant(x, x, kernel=kernel, scale=0.5)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), 0.5 * x.double() @ circulants(kernel.double()).T, rtol=1e-5, atol=1e-5)
    places = torch.arange(9, dtype=torch.int32)
    starts = torch.tensor([0, 2, 4, 6, 8, 9], dtype=torch.int32)
    got = spectral(x, None, starts=starts, columns=places, values=values, scale=0.5, out_features=8)
    assert got.dtype is torch.float32
    wanted = waves(8, 12, places // 2, places, values.double())
    torch.testing.assert_close(got.double(), 0.5 * x.double() @ wanted.T, rtol=1e-5, atol=1e-5)
