"""Whether linears round their inputs, and whether by one scale for all rows, is seen in what they give."""

import pytest
import torch
from torch import nn

from peftserve.server.engine.model.rounding import mixes_rows, quantised_linears, rounds_inputs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Rounding(nn.Linear):
    """A linear that rounds its inputs to int8, by one scale for each row or for all."""

    over: int | None = -1

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        scale = input.abs().amax(self.over, keepdim=True) / 127
        return nn.functional.linear((input / scale).round().nan_to_num() * scale, self.weight, self.bias)


class Mixing(Rounding):
    over = None


class Plain(nn.Linear):
    """A linear of a class of its own, which multiplies as ever."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "rounds", "mixes"), [(Plain, False, False), (Rounding, True, False), (Mixing, True, True)]
)
@torch.no_grad()
def test_what_it_gives_says_what_it_does(kind: type[nn.Linear], rounds: bool, mixes: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = kind(96, 40).to(dtype)
    assert rounds_inputs(linear, dtype) == rounds
    assert mixes_rows(linear, dtype) == mixes


def test_plain_linears_are_not_asked() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Plain(4, 4), nn.LayerNorm(4), nn.Embedding(4, 4))
    assert [name for name, _ in quantised_linears(model)] == ["1"]
