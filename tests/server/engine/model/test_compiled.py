"""The compiled forward pass gives the model's logits for any number of rows, and says which steps it is for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peftserve.server.engine.model.callouts import call_out
from peftserve.server.engine.model.compiled import CompiledForward
from peftserve.server.engine.model.inputs import StepInputs


class Layer:
    """Some of what a model does. shift: the step's, added inside a call."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.embedding, self.norm, self.shift = nn.Embedding(9, 8), nn.RMSNorm(8), 0.0
        self.linear = nn.Linear(8, 8)

    def __call__(self, inputs: StepInputs) -> torch.Tensor:
        x = self.embedding(inputs.ids) * inputs.positions[:, None].cos()
        y = call_out(lambda x: self.linear(x) + self.shift, torch.empty_like, self.norm(x))
        return F.silu(y) * x


def inputs(rows: int) -> StepInputs:
    ids = torch.arange(rows)
    return StepInputs(ids % 9, ids * 3, None)


@pytest.fixture(scope="module")
def layer() -> Layer:
    return Layer()


@pytest.fixture(scope="module")
def compiled(layer: Layer) -> CompiledForward:
    return CompiledForward(layer)


@pytest.mark.parametrize("rows", [1, 2, 16, 77])
@pytest.mark.parametrize("shift", [0.0, 1.5])
@torch.inference_mode()
def test_any_number_of_rows_and_whatever_the_step_was_given(
    layer: Layer, compiled: CompiledForward, rows: int, shift: float
) -> None:
    layer.shift = shift
    step = inputs(rows)
    assert compiled.fits(step)
    assert torch.allclose(compiled(step), layer(step), atol=1e-6)


def test_it_is_for_steps_that_want_all_logits(compiled: CompiledForward) -> None:
    assert not compiled.fits(inputs(5)._replace(logit_rows=torch.tensor([4])))


def test_a_graph_that_assumes_more_of_the_rows_says_so() -> None:
    """Nobody asks it for what it was not made for."""

    def forward(step: StepInputs) -> torch.Tensor:
        return step.ids * (2.0 if step.ids.shape[0] > 10 else 3.0)

    compiled = CompiledForward(forward)
    assert [compiled.fits(inputs(rows)) for rows in (1, 10, 11, 200)] == [False, False, True, True]


def test_a_model_that_looks_at_values_cannot_be_compiled() -> None:
    with pytest.raises(Exception, match="data-dependent"):
        CompiledForward(lambda step: step.ids.float() if step.ids.max() > 3 else step.positions.float())
