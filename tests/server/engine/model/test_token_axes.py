import pytest
import torch
from torch import nn

from peftserve.server.engine.model.token_axes import token_axis, token_rows, works_by_token


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 23, 64), 1), ((23, 64), 0), ((1, 4, 23, 16), 2), ((1, 23, 4, 16), 1), ((23, 4, 16), 0)],
)
def test_tokens_come_in_front_as_a_view(shape: tuple[int, ...], axis: int) -> None:
    x = torch.randn(shape)
    assert token_axis(x.shape, 23) == axis
    rows = token_rows(x, axis)
    assert rows.shape == (23, *(n for n in shape if n not in (1, 23)))
    rows[5].zero_()
    assert not x.select(axis, 5).any()


@pytest.mark.parametrize("shape", [(1, 23, 23, 16), (1, 4, 23), (1, 4, 16)])
def test_an_axis_that_cannot_be_told(shape: tuple[int, ...]) -> None:
    assert token_axis(torch.Size(shape), 23) is None


class ByHead(nn.Module):
    """A norm with a weight for each head, which has to know where the heads are."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 16) if axis == 1 else torch.randn(4, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x


def test_a_norm_that_does_not_work_token_by_token() -> None:
    x = torch.randn(1, 4, 23, 16)
    assert works_by_token(nn.LayerNorm(16), x, 2)
    assert works_by_token(ByHead(2), x.transpose(1, 2), 1)
    assert works_by_token(ByHead(1), x[:, :, :1], 2) is False
