"""A compiled model writes the inputs of its products into wider buffers, with no operator and no launch more."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.engine.gpu_code import num_launches, write
from peftserve.server.engine.model.callouts import Call, call_out
from peftserve.server.engine.model.compiled import CompiledForward, operations_of
from peftserve.server.engine.model.cutting import Piece
from peftserve.server.engine.model.inputs import StepInputs
from peftserve.server.engine.model.tracing import TracedModel, trace_model
from peftserve.server.engine.model.widening import widen_inputs

WIDTH, COLUMNS = 64, 24
CPU = torch.device("cpu")


class Model(nn.Module):
    """Products of what is computed, of another call's output, and of a view; one of them is not to be widened."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm = nn.Embedding(9, WIDTH), nn.RMSNorm(WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)
        self.shapes: dict[str, torch.Size] = {}

    def multiply(self, name: str, x: torch.Tensor) -> torch.Tensor:
        self.shapes[name] = x.shape
        return F.linear(x[..., :WIDTH], self.weight)

    def product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return call_out(Call(name, self.multiply, lambda _, x: x.new_empty(x.shape)), x)

    def forward(self, step: StepInputs) -> torch.Tensor:
        x = self.embedding(step.ids)[None]
        y = self.product("normed", self.norm(x))
        z = self.product("behind a call", y) + x
        z = self.product("viewed", (z * 2).view(1, -1, WIDTH // 2, 2).flatten(2))
        z = self.product("activated", F.silu(z) * y)
        return self.product("plain", z * z + x)[0]


def room(owner: object) -> int:
    return COLUMNS if isinstance(owner, str) and owner != "plain" else 0


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


def traced(model: Model) -> TracedModel:
    return trace_model(model, lambda ids, positions, rows: model(StepInputs(ids, positions, rows)), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 17, 96])
@torch.inference_mode()
def test_inputs_have_columns_behind_them(model: Model, rows: int) -> None:
    step = StepInputs(torch.arange(rows) % 9, torch.arange(rows), None)
    wanted = model(step)
    compiled = CompiledForward(model, model, CPU, room)
    assert compiled.num_compiled == compiled.num_pieces
    assert torch.allclose(compiled(step), wanted, atol=1e-5)
    wide = {name for name, shape in model.shapes.items() if shape[-1] == WIDTH + COLUMNS}
    assert wide == {"normed", "activated"}


def test_it_costs_no_launch_on_a_gpu_and_no_byte(model: Model) -> None:
    pieces = {}
    for columns in (0, COLUMNS):
        found = traced(model)
        assert widen_inputs(found, lambda owner, columns=columns: columns and room(owner)) == (2 if columns else 0)
        pieces[columns] = [write(p) for p in operations_of(found) if isinstance(p, Piece) and not p.only_views]
    for plain, wide in zip(pieces[0], pieces[COLUMNS], strict=True):
        assert num_launches(plain) == num_launches(wide)
        assert plain.count("tl.store") == wide.count("tl.store")
        assert plain.count("tl.load") == wide.count("tl.load")
    assert sum(f"{WIDTH + COLUMNS}*x" in code for code in pieces[COLUMNS]) == 2, "rows that are written with a stride"
