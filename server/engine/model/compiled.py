"""The model's forward pass compiled by TorchInductor for decode steps on a CPU.

Norms, rotations and activations of a layer become a few loops: a step of a few rows spends as much on operators and
Python between the products as on attention. The graph is traced once, with a symbolic number of rows, by running the
model on tensors without values; nothing in it depends on adapters, because what they change is called back
(`callouts.py`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch._inductor
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from .callouts import leaving_calls
from .inputs import StepInputs

HINT_ROWS = 16  # the number of rows that loops are laid out for; others run too


class CompiledForward:
    """Steps that want the logits of all their rows, as a decode does.

    forward: the model on a step's inputs. Raises whatever the model or the compiler raises if it cannot be compiled,
    such as for a model that looks at a tensor's values, or for want of a C++ compiler.
    """

    def __init__(self, forward: Callable[[StepInputs], torch.Tensor]) -> None:
        shapes = ShapeEnv()
        fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes)
        inputs: list[Any] = [_row_ids(fake, name) for name in ("ids", "positions")]
        with torch.no_grad(), leaving_calls() as self._calls:
            graph = make_fx(lambda ids, positions: forward(StepInputs(ids, positions, None)), tracing_mode="fake")(
                *inputs
            )
        with torch.no_grad():
            self._run: Callable[..., torch.Tensor] = torch._inductor.compile(graph, inputs)
        self._assumed = shapes.produce_guards_expression(inputs, ignore_static=False)
        self._shapes = shapes
        self._fits: dict[int, bool] = {}  # by the number of rows

    def fits(self, inputs: StepInputs) -> bool:
        """Whether the graph is for such a step.

        A single row is taken for two: what the compiler assumes of a length is that it is not one, so that it need not
        think of what could be broadcast, and no length of ours is ever broadcast.
        """
        rows = max(len(inputs.ids), 2)
        if rows not in self._fits:
            args: list[Any] = [torch.empty(rows, dtype=torch.int64, device="meta") for _ in range(2)]
            self._fits[rows] = self._assumed is None or self._shapes.evaluate_guards_expression(self._assumed, args)
        return inputs.logit_rows is None and self._fits[rows]

    def __call__(self, inputs: StepInputs) -> torch.Tensor:
        """Logits (rows, vocabulary) of a step that fits."""
        return self._run(inputs.ids, inputs.positions)


def _row_ids(fake: FakeTensorMode, name: str) -> torch.Tensor:
    """(rows,) int64 without values, of a symbolic length."""
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    real = torch.zeros(HINT_ROWS, dtype=torch.int64)
    return fake.from_tensor(real, symbolic_context=context, source=ConstantSource(name))
