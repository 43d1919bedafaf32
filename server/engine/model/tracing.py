"""Trace a model for the compiler: one graph of plain operators and calls (`callouts.py`), for any number of rows.

The model runs once on tensors without values, whose number of rows is a symbol. Of layers that are alike the first is
traced and the others are copies of it, with their own weights and calls: a trace of one takes a third of a second.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from ..private.inductor_private import (
    ConstantSource,
    DimDynamic,
    FakeTensorMode,
    ShapeEnv,
    StatelessSymbolicContext,
    StrictMinMaxConstraint,
    ValueRanges,
    enable_python_dispatcher,
)
from .alike import counterparts
from .callouts import Call, Calls, is_call, leaving_calls
from .regions import Assumes, Layers, Region, attribute, trace

MOST_ROWS = 1 << 13  # of a step, unless the caller has others
HINT_ROWS, HINT_KEPT = 61, 47  # loops are laid out for these; odd and different, lest one size is taken for the other


@dataclass
class TracedModel:
    """A model as one graph, from the step's token ids, positions and rows that reach the head to the logits.

    shapes: the environment of its symbols. tensors: of its `get_attr` nodes, by target. calls: by node.
    left: names of layers that could not be traced.
    """

    shapes: ShapeEnv
    graph: fx.Graph = field(default_factory=fx.Graph)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    calls: dict[fx.Node, Call] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def trace_model(
    model: nn.Module, forward: Callable[..., torch.Tensor], device: torch.device, most_rows: int = MOST_ROWS
) -> TracedModel:
    """Trace a model. forward: runs it on ids, positions and rows. most_rows: of any step.

    On a GPU the bound tells inductor that 32 bits number the elements of a tensor; without one it would assume so.

    Raises Assumes if the graph would be for some numbers of rows only, or whatever the model raises if more of it than
    single layers cannot be traced.
    """
    shapes = ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=shapes)
    lengths = {"ids": HINT_ROWS, "rows": HINT_KEPT}
    ids, rows = (_integers(fake, name, hint, max(most_rows, HINT_ROWS), device) for name, hint in lengths.items())
    with fake:
        positions = torch.empty_like(ids)
    layers = Layers(model)
    with torch.no_grad(), enable_python_dispatcher(), layers.standing_alone(), leaving_calls() as calls:
        outer = trace(forward, [ids, positions, rows])
    traced = TracedModel(shapes, left=layers.left)
    _Flattening(traced, layers).run(outer, calls)
    traced.graph.eliminate_dead_code()
    check_assumptions(shapes)
    return traced


def check_assumptions(shapes: ShapeEnv) -> None:
    """Raise Assumes if anything has been assumed of the symbols but that they are not 0 or 1.

    A step of one row may run all the same: a length of 1 matters only where it could be broadcast, and no dimension of
    rows is.
    """
    if shapes.guards:
        raise Assumes(f"it would be for steps with {', '.join(str(guard.expr) for guard in shapes.guards)} only")


def _integers(fake: FakeTensorMode, name: str, hint: int, most: int, device: torch.device) -> torch.Tensor:
    """Make a tensor (rows,) int64 without values, of a symbolic length of up to `most`."""
    bound = StrictMinMaxConstraint(warn_only=False, vr=ValueRanges(2, most))
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC], constraint_sizes=[bound])
    real = torch.zeros(hint, dtype=torch.int64, device=device)
    return fake.from_tensor(real, symbolic_context=context, source=ConstantSource(name))


class _Flattening:
    """Joins the graph of the whole model and those of its layers to one."""

    def __init__(self, traced: TracedModel, layers: Layers) -> None:
        self._traced = traced
        self._layers = layers
        self._targets: dict[int, str] = {}  # of tensors, by their id

    def run(self, outer: fx.GraphModule, calls: Calls) -> None:
        names: dict[fx.Node, fx.Node] = {}
        for node in outer.graph.nodes:
            call = calls[node.args[1]] if is_call(node.target) else None
            region = None if call is None else self._layers.region_of(call.owner)
            if call is not None and region is not None:
                names[node] = self._inlined(region, call.owner, [names[used] for used in node.args[0]])
            else:
                names[node] = self._copied(node, names, attribute(outer, node), call)

    def _inlined(self, region: Region, layer: nn.Module, inputs: Sequence[fx.Node]) -> fx.Node:
        twins = counterparts(region.layer, layer)
        names, rest = dict[fx.Node, fx.Node](), iter(inputs)
        for node in region.module.graph.nodes:
            if node.op == "placeholder":
                names[node] = next(rest)
            elif node.op == "output":
                return names[node.args[0]]
            else:
                tensor = attribute(region.module, node)
                call = region.calls[node.args[1]] if is_call(node.target) else None
                if call is not None:
                    call = call._replace(owner=self._layers.renamed(call.owner, region, layer, twins))
                names[node] = self._copied(node, names, twins.get(id(tensor), tensor), call)
        raise AssertionError("a graph without an output")

    def _copied(
        self, node: fx.Node, names: Mapping[fx.Node, fx.Node], tensor: torch.Tensor | None, call: Call | None
    ) -> fx.Node:
        copied = self._traced.graph.node_copy(node, names.__getitem__)
        if tensor is not None:
            copied.target = self._targets.setdefault(id(tensor), f"tensor_{len(self._targets)}")
            self._traced.tensors[copied.target] = tensor
        if call is not None:
            self._traced.calls[copied] = call
        return copied
