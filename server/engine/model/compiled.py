"""The model's forward pass compiled by TorchInductor, for decode steps and prefills of any number of rows.

Norms, residuals, rotations and activations of a layer become a few loops or kernels: a step of a few rows spends as
much on operators and Python between the products as on attention. The model is traced (`tracing.py`) and cut at its
calls (`cutting.py`); what lies between is compiled piece by piece (`inductor.py`), and equal pieces once. Nothing of
it depends on adapters, because what they change is called (`callouts.py`).
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.compiler import config as compiler_config
from tqdm import tqdm

from .callouts import Call
from .cutting import Operation, Piece, cut, share_sizes
from .inductor import compile_piece
from .inputs import StepInputs
from .program import Program, Run
from .regions import Assumes
from .tracing import MOST_ROWS, TracedModel, check_assumptions, trace_model
from .widening import widen_inputs

logger = logging.getLogger(__name__)

Forward = Callable[[StepInputs], torch.Tensor]


class CompiledForward:
    """The forward pass of one model as a program of compiled pieces and of calls.

    num_pieces, num_compiled: different pieces, and how many of them inductor took. left: names of layers that could not
    be traced and are called as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Forward,
        device: torch.device,
        room: Callable[[Any], int] = lambda _: 0,
        most_rows: int = MOST_ROWS,
    ) -> None:
        """Trace and compile the model.

        forward: the model on a step's inputs. room: from a call's owner to the number of spare columns behind the
        call's input. most_rows: of any step.

        Raises whatever the model raises if more of it than single layers cannot be traced.
        """
        traced = trace_model(model, lambda *given: forward(StepInputs(*given)), device, most_rows)
        self.left = traced.left
        self._traced = traced
        widen_inputs(traced, room)
        operations = operations_of(traced)
        # What is kept on disk does not know of how many rows at most it is.
        with compiler_config.patch(cache_key_tag=f"at most {most_rows} rows"):  # type: ignore[attr-defined]
            runs = self._compile([operation for operation in operations if isinstance(operation, Piece)])
        tensors = {node: traced.tensors[str(node.target)] for node in traced.graph.find_nodes(op="get_attr")}
        (output,) = traced.graph.output_node().args
        assert isinstance(output, fx.Node)
        self._program = Program(traced.graph.find_nodes(op="placeholder"), tensors, output)
        for operation in operations:
            if isinstance(operation, Piece):
                self._program.add(runs[operation.key], operation.inputs, operation.outputs)
            else:
                run = _run_call(traced.calls[operation]) if operation in traced.calls else _run_select(operation)
                self._program.add(run, operation.all_input_nodes, [operation])
        self._program.finish()
        del self._traced

    def __call__(self, inputs: StepInputs) -> torch.Tensor:
        """Return logits (rows, vocabulary) of all rows, or of those that are wanted."""
        return self._program(*inputs)

    def _compile(self, pieces: Iterable[Piece]) -> dict[str, Run]:
        """Compile each different piece once. Returns what runs it, by the piece's key."""
        different = {piece.key: piece for piece in pieces}
        worth = {key: piece for key, piece in different.items() if not piece.only_views}
        runs = {key: _run_plainly(piece) for key, piece in different.items()}
        self.num_pieces, self.num_compiled = len(worth), 0
        for key, piece in tqdm(worth.items(), desc="compiling", unit="piece", disable=None):
            if (run := self._compiled(piece)) is not None:
                runs[key] = run
                self.num_compiled += 1
        logger.info("%d of %d different pieces are compiled", self.num_compiled, self.num_pieces)
        return runs

    def _compiled(self, piece: Piece) -> Run | None:
        try:
            run = compile_piece(piece)
            check_assumptions(self._traced.shapes)
        except Exception as error:  # the compiler's own errors share no class
            self._traced.shapes.guards.clear()
            logger.warning("a piece runs operator by operator (%s): %s", piece.summary, error)
            return None
        return run


def operations_of(traced: TracedModel) -> list[Operation]:
    """Cut the traced model into pieces, calls, and picks of the rows whose logits are wanted, in their order.

    A pick is an operation of its own because in a step that wants all rows it does nothing: what follows runs on all
    rows then. Raises Assumes if the graph looks elsewhere at which rows are wanted.
    """
    share_sizes(traced.graph)
    *_, rows = traced.graph.find_nodes(op="placeholder")
    picks = [node for node in rows.users if node.target is torch.ops.aten.index.Tensor]
    if others := [str(user) for user in rows.users if user not in picks]:
        raise Assumes(f"which rows are wanted is looked at by {', '.join(others)}")
    return cut(traced.graph, lambda node: node in traced.calls or node in picks)


def _run_plainly(piece: Piece) -> Run:
    forward = fx.GraphModule({}, piece.graph).forward
    return lambda values: forward(*values)


def _run_call(call: Call) -> Run:
    owner, run, _ = call
    return lambda tensors: (run(owner, *tensors),)


def _run_select(node: fx.Node) -> Run:
    """Return what picks rows of a tensor; its inputs are the tensor and the rows, or None for all."""
    dimension = list(node.args[1]).index(node.all_input_nodes[1])  # type: ignore[arg-type]

    def run(values: list[Any]) -> tuple[torch.Tensor]:
        tensor, rows = values
        return (tensor if rows is None else tensor.index_select(dimension, rows),)

    return run
