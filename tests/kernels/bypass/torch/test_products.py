import pytest
import torch

from peftserve.kernels.bypass.torch.products import EXPANDS, SHRINKS, WIDE

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHRINKS)
def test_shrink(name: str, dtype: torch.dtype) -> None:
    x, a = torch.randn(5, 40).to(dtype), torch.randn(7, 40).to(dtype).t()
    h = SHRINKS[name](x, a)
    assert h.dtype is (torch.float32 if name == WIDE else dtype)
    torch.testing.assert_close(h.double(), x.double() @ a.double(), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("h_dtype", [torch.float32, None], ids=str)
@pytest.mark.parametrize("name", EXPANDS)
def test_expand_takes_the_h_of_every_shrink(name: str, dtype: torch.dtype, h_dtype: torch.dtype | None) -> None:
    y, h, b = (torch.randn(shape).to(dtype) for shape in ((5, 40), (5, 7), (7, 40)))
    want = y.double() + h.double() @ b.double()
    EXPANDS[name](y, h.to(h_dtype or dtype), b)
    torch.testing.assert_close(y.double(), want, rtol=0.02, atol=0.05)
