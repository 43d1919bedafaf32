"""One graph of a whole model, with the weights and calls of each layer, for any number of rows."""

import pytest
import torch
from torch import nn

from peftserve.server.engine.model.callouts import Call, call_out
from peftserve.server.engine.model.regions import Assumes
from peftserve.server.engine.model.tracing import TracedModel, check_assumptions, trace_model

CPU = torch.device("cpu")


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (call_out(Call(self, lambda _, x: x, lambda _, x: torch.empty_like(x)), x * self.weight),)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer(), Layer()])

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        x = ids[:, None] * torch.ones(4) + positions[:, None]
        for layer in self.layers:
            x = layer(x)[0]
        return x[rows]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def traced(model: Model) -> TracedModel:
    return trace_model(model, model, CPU)


def test_each_layers_calls_and_weights_are_its_own(model: Model, traced: TracedModel) -> None:
    assert [call.owner for call in traced.calls.values()] == list(model.layers)
    weights = [traced.tensors[str(node.args[0][0].args[1].target)] for node in traced.calls]  # type: ignore
    assert all(found is layer.weight for found, layer in zip(weights, model.layers, strict=True))


def test_what_is_computed_has_the_shape_that_the_model_gives_it(traced: TracedModel) -> None:
    ids, _, rows = traced.graph.find_nodes(op="placeholder")
    for node in traced.calls:
        assert node.meta["val"].shape == (ids.meta["val"].shape[0], 4)
    assert traced.graph.output_node().args[0].meta["val"].shape == (rows.meta["val"].shape[0], 4)  # type: ignore


def test_the_model_is_as_it_was(model: Model, traced: TracedModel) -> None:
    assert all("forward" not in vars(layer) for layer in model.layers)
    ids = torch.arange(3)
    assert model(ids, ids, ids).shape == (3, 4)


def test_nothing_is_assumed_of_the_number_of_rows(traced: TracedModel) -> None:
    check_assumptions(traced.shapes)
    rows = next(iter(traced.graph.find_nodes(op="placeholder"))).meta["val"].shape[0]
    assert rows > 50
    with pytest.raises(Assumes, match="> 50"):
        check_assumptions(traced.shapes)
