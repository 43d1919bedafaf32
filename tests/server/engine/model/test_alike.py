"""Which layers may share a trace, and what takes the place of what."""

from typing import Any

import pytest
import torch
from torch import nn

from peftserve.server.engine.model.alike import alike, counterparts


class Layer(nn.Module):
    def __init__(self, index: int, width: int = 4, **settings: Any) -> None:
        super().__init__()
        self.layer_idx = index
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)
        self.register_buffer("scale", torch.ones(width))
        for name, value in settings.items():
            setattr(self, name, value)


def test_layers_that_differ_in_weights_and_index_only_are_alike() -> None:
    one, other = Layer(0, window=8), Layer(1, window=8)
    one.linear.forward = other.forward  # type: ignore[method-assign]  # as the hooks wrap it
    other.linear.forward = one.forward  # type: ignore[method-assign]
    assert alike(one, other)


@pytest.mark.parametrize(
    "other",
    [
        Layer(1, window=9),
        Layer(1, width=5, window=8),
        Layer(1, window=8, more=1),
        Layer(1, window=8.0),
        Layer(1, window=torch.tensor(8)),
        nn.Linear(4, 4),
        Layer(1, window=8).double(),
        Layer(1, window=8, norm=nn.LayerNorm(4, eps=1e-3)),
    ],
)
def test_any_other_difference_counts(other: nn.Module) -> None:
    assert not alike(Layer(0, window=8), other)


def test_counterparts_are_modules_parameters_and_buffers() -> None:
    one, other = Layer(0), Layer(1)
    twins = counterparts(one, other)
    assert twins[id(one)] is other
    assert twins[id(one.linear)] is other.linear
    assert twins[id(one.norm.weight)] is other.norm.weight
    assert twins[id(one.scale)] is other.scale
