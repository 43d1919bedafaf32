"""Which layers are traced by themselves, which share a trace, and what becomes of those that cannot be traced."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from peftserve.server.engine.model.tracing import TracedModel, trace_model


class Layer(nn.Module):
    """traces: a note of each layer whose Python ran."""

    def __init__(self, width: int, change: Callable[[torch.Tensor], torch.Tensor], traces: list[nn.Module]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width), requires_grad=False)
        self.change, self.traces = change, traces

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.traces.append(self)
        return self.change(x) * self.weight.sum() * scale


def looking(x: torch.Tensor) -> torch.Tensor:
    return x if x.max() > 0 else -x


class Model(nn.Module):
    def __init__(self, *layers: tuple[int, Callable[[torch.Tensor], torch.Tensor], float]) -> None:
        super().__init__()
        self.traces: list[nn.Module] = []
        self.scales = [scale for *_, scale in layers]
        self.layers = nn.ModuleList([Layer(width, change, self.traces) for width, change, _ in layers])

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        x = ids.float()
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = layer(x, scale=scale)
        return x[rows]


def traced(model: Model) -> TracedModel:
    return trace_model(model, model, torch.device("cpu"))


@pytest.mark.parametrize(
    ("layers", "runs"),
    [
        ([(2, torch.sin, 1.0)] * 4, [0]),
        ([(2, torch.sin, 1.0), (2, torch.cos, 1.0)] * 2, [0, 1]),
        ([(2, torch.sin, 1.0), (3, torch.sin, 1.0), (2, torch.sin, 2.0)], [0, 1, 2]),
    ],
)
def test_alike_layers_with_alike_arguments_are_traced_once(
    layers: list[tuple[int, Callable[[torch.Tensor], torch.Tensor], float]], runs: list[int]
) -> None:
    model = Model(*layers)
    found = traced(model)
    assert model.traces == [model.layers[i] for i in runs]
    assert not found.calls
    assert len({id(t) for t in found.tensors.values()}) == len(layers)


def test_a_layer_that_cannot_be_traced_is_one_call(caplog: pytest.LogCaptureFixture) -> None:
    model = Model((2, torch.sin, 1.0), (2, looking, 3.0), (2, torch.sin, 1.0))
    found = traced(model)
    assert found.left == ["layers.1"]
    assert "layers.1 is not compiled" in caplog.text
    (call,) = found.calls.values()
    assert call.owner is model.layers[1]
    x = torch.tensor([-1.0, -2.0])
    assert torch.equal(call.run(call.owner, x), -x * 2 * 3.0)


def test_a_layer_that_reads_what_another_has_computed_is_one_call() -> None:
    seen: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.sin())
        return seen[-1]

    model = Model((2, keep, 1.0), (2, lambda x: x + seen[-1], 1.0))
    assert traced(model).left == ["layers.1"]
