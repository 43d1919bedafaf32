"""Scaled bases against their whole matrix, in float64, whichever width is the narrower one."""

import pytest
import torch

from peftserve.kernels.ops.bases import shared_bases


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def matrix(a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, scale: torch.Tensor, wide: int) -> torch.Tensor:
    """Return the matrix (wide, narrow), computed basis by basis."""
    (rank, count), narrow = d.shape, scale.shape[1]
    w = torch.zeros(wide, narrow, dtype=torch.float64)
    for k in range(rank):
        for n in range(count):
            w += torch.outer(b[:wide, k * count + n], d[k, n] * a[k, :narrow] * scale[n])
    return w


@pytest.mark.parametrize("rank", [1, 3, 7, 9])
@pytest.mark.parametrize("tokens", [1, 2, 11])
def test_shared_bases(rank: int, tokens: int) -> None:
    """More tokens than bases, and fewer."""
    count = -(-7 // rank)
    fields = {"a": draw(rank, 9), "b": draw(13, 11 * rank), "d": draw(rank, count), "scale": draw(count, 7)}
    for wide in (7, 12):
        w = matrix(**fields, wide=wide)
        narrow_in, wide_in = draw(tokens, 7), draw(tokens, wide)
        torch.testing.assert_close(shared_bases(narrow_in, None, **fields, out_features=wide), narrow_in @ w.T)
        if wide > 7:
            torch.testing.assert_close(shared_bases(wide_in, None, **fields, out_features=7), wide_in @ w)


@pytest.mark.parametrize("tokens", [2, 11])
def test_products_in_pieces_of_16_bits(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftserve.kernels.ops.bases._PIECE", 5)
    fields = {"a": draw(3, 9), "b": draw(13, 33), "d": draw(3, 3), "scale": draw(3, 7)}
    coarse = {name: tensor.bfloat16() for name, tensor in fields.items()}
    x = draw(tokens, 12).bfloat16()
    wanted = x.double() @ matrix(**{name: tensor.double() for name, tensor in coarse.items()}, wide=12)
    got = shared_bases(x, None, **coarse, out_features=7)
    assert got.dtype is torch.bfloat16
    assert (got.double() - wanted).norm() < 0.02 * wanted.norm()
