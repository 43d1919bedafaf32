"""Cut a traced model at the calls that it leaves to this process, into pieces of the operators between them.

Pieces of alike layers are equal, so one compilation serves all of them. A piece reaches from one call to the next,
across the border of two layers: the operators that end one are compiled with those that begin the next.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..private.inductor_private import OpOverload

_VIEWS = (torch.ops.aten.split_with_sizes.default, torch.ops.aten.sym_size.int)
_IGNORED = ("placeholder", "get_attr", "output")


@dataclass(frozen=True)
class Piece:
    """Operators between two calls, as a graph of its own: from placeholders to a tuple.

    inputs, outputs: its placeholders and results, as nodes of the graph that was cut. key: the same for two pieces if
    and only if they do the same to inputs of the same types, devices, shapes and strides.
    """

    key: str
    graph: fx.Graph
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    @property
    def only_views(self) -> bool:
        """Return whether no operator of it reads or writes an element of a tensor: to compile it would save nothing."""
        return all(node.op != "call_function" or is_view(node) for node in self.graph.nodes)

    @property
    def summary(self) -> str:
        """Name its operators, each once."""
        targets = (node.target for node in self.graph.nodes if node.op == "call_function")
        return ", ".join(dict.fromkeys(str(target).removeprefix("aten.").split(".")[0] for target in targets))

    @property
    def examples(self) -> list[Any]:
        """Return a tensor without values, or a size, for each input."""
        return [node.meta["val"] for node in self.inputs]


Operation = Piece | fx.Node
"""A piece, or one node that stands alone, such as a call."""


def cut(graph: fx.Graph, stands_alone: Callable[[fx.Node], bool]) -> list[Operation]:
    """Cut a graph into operations, in its order. Each size is a piece of its own, which later pieces have as an input.

    graph: its nodes have tensors without values in `meta["val"]`. stands_alone: whether a node is no part of a piece.
    """
    operations: list[Operation] = []
    run: list[fx.Node] = []
    for node in graph.nodes:
        if node.op in _IGNORED:
            continue
        if is_size(node):
            # A size goes before a run of nodes that it does not depend on, so that the run is not cut there.
            if not set(run).isdisjoint(node.all_input_nodes):
                operations.append(_piece(run))
                run = []
            operations.append(_piece([node]))
        elif stands_alone(node):
            operations += [_piece(run), node] if run else [node]
            run = []
        else:
            run.append(node)
    return [*operations, _piece(run)] if run else operations


def share_sizes(graph: fx.Graph) -> None:
    """Let each size be computed once, where it is known first, so that every piece that needs it has the same input.

    Changes the graph.
    """
    known: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and is_size(node):
            first = known.setdefault(str(node.meta["val"]), node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)


def is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def is_view(node: fx.Node) -> bool:
    """Return whether a node only views a tensor in another way, or takes it out of several."""
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    return node.target.is_view or node.target in _VIEWS


def _piece(nodes: list[fx.Node]) -> Piece:
    inside = set(nodes)
    inputs = tuple(dict.fromkeys(used for node in nodes for used in node.all_input_nodes if used not in inside))
    outputs = tuple(node for node in nodes if any(user not in inside for user in node.users))
    graph, names = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in inputs:
        names[node] = graph.placeholder(f"input_{len(names)}")
        names[node].meta = {"val": node.meta["val"]}
    for node in nodes:
        names[node] = graph.node_copy(node, names.__getitem__)
        names[node].meta = {"val": node.meta["val"]}
    graph.output(tuple(names[node] for node in outputs))
    return Piece(_key(graph), graph, inputs, outputs)


def _key(graph: fx.Graph) -> str:
    """Describe a graph by its nodes' places and not their names, which differ between alike layers."""
    names = {node: f"%{place}" for place, node in enumerate(graph.nodes)}
    return "\n".join(_described(node, names) for node in graph.nodes)


def _described(node: fx.Node, names: dict[fx.Node, str]) -> str:
    arguments = fx.map_arg((node.args, node.kwargs), lambda used: _Name(names[used]))
    what = " ".join(_kind(value) for value in _flat(node.meta.get("val"))) if node.op == "placeholder" else node.target
    return f"{node.op} {what} {arguments}"


class _Name(str):
    """A name that stands in the text of a list of arguments without quotes."""

    __repr__ = str.__str__


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, Iterable) and not isinstance(value, torch.Tensor):
        yield from value
    else:
        yield value


def _kind(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return str(value)
    return f"{value.dtype} {value.device} {tuple(value.shape)} {value.stride()}"
