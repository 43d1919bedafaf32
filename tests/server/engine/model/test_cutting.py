"""Pieces are what lies between calls, equal ones have equal keys, and sizes cut nothing."""

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from peftserve.server.engine.model.callouts import Call, call_out, is_call, leaving_calls
from peftserve.server.engine.model.cutting import Piece, cut, share_sizes

DOUBLE = Call(None, lambda _, x: x * 2, lambda _, x: torch.empty_like(x))


def block(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    y = call_out(DOUBLE, (x * weight).sin())
    return x + call_out(DOUBLE, y.view(2, x.shape[0], -1))[0].repeat(1, 2)


def model(x: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return block(block(x, one), other).view(x.shape[0], 2, 2)


def graph() -> fx.Graph:
    with leaving_calls():
        traced = make_fx(model, tracing_mode="symbolic")(torch.ones(6, 4), torch.ones(4), torch.ones(4))
    traced.graph.eliminate_dead_code()
    share_sizes(traced.graph)
    found: fx.Graph = traced.graph
    return found


def pieces(found: fx.Graph) -> list[Piece]:
    return [part for part in cut(found, lambda node: is_call(node.target)) if isinstance(part, Piece)]


def test_equal_pieces_have_equal_keys() -> None:
    keys = [piece.key for piece in pieces(graph()) if "sin" in piece.key]
    assert len(keys) == 2
    first, second = keys
    assert "add" not in first
    assert "add" in second, "the end of a block and the beginning of the next are one"


def test_a_size_is_known_once_and_cuts_nothing() -> None:
    found = graph()
    sizes = [node for node in found.nodes if node.target is torch.ops.aten.sym_size.int]
    assert len(sizes) == len({str(node.meta["val"]) for node in sizes})
    parts = cut(found, lambda node: is_call(node.target))
    kinds = ["call" if isinstance(part, fx.Node) else "views" if part.only_views else "piece" for part in parts]
    assert [kind for kind in kinds if kind != "views"] == ["piece", "call", "call", "piece", "call", "call", "piece"]


def test_the_parts_in_their_order_are_the_graph() -> None:
    found = graph()
    x, one, other = torch.randn(3, 4), torch.randn(4), torch.randn(4)
    values = dict(zip(found.find_nodes(op="placeholder"), (x, one, other), strict=True))
    for part in cut(found, lambda node: is_call(node.target)):
        if isinstance(part, Piece):
            outputs = fx.GraphModule({}, part.graph)(*(values[node] for node in part.inputs))
            values |= dict(zip(part.outputs, outputs, strict=True))
        else:
            values[part] = values[part.all_input_nodes[0]] * 2
    assert torch.equal(values[found.output_node().args[0]], model(x, one, other))


def test_a_summary_names_operators_once() -> None:
    (first, *_) = [piece for piece in pieces(graph()) if not piece.only_views]
    assert first.summary == "mul, sin"
