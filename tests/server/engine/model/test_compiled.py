"""The compiled forward pass gives the model's logits for any number of rows, by the same compiled code."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peftserve.server.engine.model import compiled as compiled_module
from peftserve.server.engine.model.callouts import Call, call_out
from peftserve.server.engine.model.compiled import CompiledForward
from peftserve.server.engine.model.inputs import StepInputs

CPU = torch.device("cpu")
SIZES = (1, 2, 3, 8, 16, 17, 24, 64, 96, 256)


class Layer(nn.Module):
    """shift: the step's, added inside a call. looks: at its input's values, as some models do."""

    def __init__(self, looks: bool = False) -> None:
        super().__init__()
        self.norm, self.linear, self.looks = nn.RMSNorm(8), nn.Linear(8, 8), looks
        self.shift = SimpleNamespace(value=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.looks and float(x.sum()) > 1e9:
            return x
        call = Call(self, lambda layer, x: layer.linear(x) + layer.shift.value, lambda _, x: torch.empty_like(x))
        return F.silu(call_out(call, self.norm(x))) * x + x


class Model(nn.Module):
    def __init__(self, *looking: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm = nn.Embedding(9, 8), nn.RMSNorm(8)
        self.layers = nn.ModuleList(map(Layer, looking))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        x = self.embedding(inputs.ids) * inputs.positions[:, None].cos()
        for layer in self.layers:
            x = layer(x)
        return self.norm(x if inputs.logit_rows is None else x[inputs.logit_rows])


def inputs(rows: int, wanted: list[int] | None = None) -> StepInputs:
    ids = torch.arange(rows)
    return StepInputs(ids % 9, ids * 3, None if wanted is None else torch.tensor(wanted))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(False, False, False)


@pytest.fixture(scope="module")
def runs() -> list[str]:
    """Keys of the pieces, one for each time that compiled code ran."""
    return []


@pytest.fixture(scope="module")
def compiled(model: Model, runs: list[str]) -> Any:
    base = compiled_module.compile_piece

    def counted(piece: Any) -> Any:
        run = base(piece)
        return lambda values: (runs.append(piece.key), run(values))[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_module, "compile_piece", counted)
        return CompiledForward(model, model, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("rows", SIZES)
@torch.inference_mode()
def test_the_same_code_runs_any_number_of_rows(
    model: Model, compiled: CompiledForward, runs: list[str], rows: int
) -> None:
    runs.clear()
    assert torch.allclose(compiled(inputs(rows)), model(inputs(rows)), atol=1e-5)
    assert len(runs) == 5, "before the layers, in each, and after them"
    assert len(set(runs)) == 4, "the ends of the first two layers are one piece"


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "wanted"), [(5, [4]), (1, [0]), (200, [3, 7, 199]), (4, [0, 1, 2, 3])])
@torch.inference_mode()
def test_only_the_rows_that_are_wanted(model: Model, compiled: CompiledForward, rows: int, wanted: list[int]) -> None:
    step = inputs(rows, wanted)
    assert torch.allclose(compiled(step), model(step), atol=1e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_calls_find_what_the_step_was_given(model: Model, compiled: CompiledForward) -> None:
    """Each layer's, though all layers are copies of one trace."""
    for layer, shift in zip(model.layers, (1.5, 0.5, -2.0), strict=True):
        layer.shift.value = shift
        assert torch.allclose(compiled(inputs(7)), model(inputs(7)), atol=1e-5)


@pytest.mark.slow
def test_equal_pieces_are_compiled_once(compiled: CompiledForward) -> None:
    assert (compiled.num_pieces, compiled.num_compiled, compiled.left) == (4, 4, [])


@pytest.mark.slow
@torch.inference_mode()
def test_a_layer_that_looks_at_values_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = Model(False, True, False)
    compiled = CompiledForward(model, model, CPU)
    assert compiled.left == ["layers.1"]
    assert "layers.1 is not compiled" in caplog.text
    assert compiled.num_compiled == compiled.num_pieces
    for rows in (1, 5, 40):
        assert torch.allclose(compiled(inputs(rows)), model(inputs(rows)), atol=1e-5)


@pytest.mark.slow
@torch.inference_mode()
def test_a_piece_that_the_compiler_refuses_runs_operator_by_operator(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = compiled_module.compile_piece

    def refuse(piece: Any) -> Any:
        if "cos" in piece.summary:
            raise RuntimeError("no loops today")
        return base(piece)

    monkeypatch.setattr(compiled_module, "compile_piece", refuse)
    with caplog.at_level(logging.INFO):
        compiled = CompiledForward(model, model, CPU)
    assert (compiled.num_pieces, compiled.num_compiled) == (4, 3)
    assert "3 of 4 different pieces are compiled" in caplog.text
    assert "cos" in caplog.text
    assert "no loops today" in caplog.text
    assert torch.allclose(compiled(inputs(3)), model(inputs(3)), atol=1e-5)


def test_a_graph_for_some_numbers_of_rows_only_is_none(model: Model) -> None:
    def forward(step: StepInputs) -> torch.Tensor:
        return step.ids * (2.0 if step.ids.shape[0] > 10 else 3.0)

    with pytest.raises(Exception, match=r"for steps with .* > 10 only"):
        CompiledForward(model, forward, CPU)


def test_a_model_that_looks_at_values_outside_of_its_layers_cannot_be_compiled(model: Model) -> None:
    with pytest.raises(Exception, match="_local_scalar_dense"):
        CompiledForward(model, lambda step: step.ids.float() if step.ids.max() > 3 else step.ids * 2.0, CPU)
