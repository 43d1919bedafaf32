"""What a graph keeps of a call, and that nothing is kept outside of one."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from peftserve.server.engine.model.callouts import Call, Calls, call_out, is_call, is_traced, leaving_calls


def scale(owner: float, x: torch.Tensor) -> torch.Tensor:
    return x * owner


def halves(owner: float, x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(len(x) // 2)


def calling(x: torch.Tensor) -> torch.Tensor:
    return call_out(Call(2.0, scale, halves), x + 1) - 1


def traced() -> tuple[torch.fx.GraphModule, Calls]:
    with leaving_calls() as calls:
        assert is_traced()
        return make_fx(calling, tracing_mode="fake")(torch.zeros(6)), calls


def test_outside_of_a_graph_it_is_what_it_runs() -> None:
    assert not is_traced()
    assert calling(torch.ones(3)).tolist() == [3.0, 3.0, 3.0]


def test_a_graph_has_the_call_and_what_its_result_is_like() -> None:
    graph, calls = traced()
    assert not is_traced()
    (node,) = [node for node in graph.graph.nodes if is_call(node.target)]
    (tensor,), number = node.args
    assert str(tensor.target) == "aten.add.Tensor"
    assert node.meta["val"].shape == (3,)
    assert calls[number] == Call(2.0, scale, halves)


def test_traces_within_one_another_keep_their_own() -> None:
    with leaving_calls() as outer:
        first = outer.add(Call(1.0, scale, halves))
        graph, inner = traced()
        second = outer.add(Call(3.0, scale, halves))
    (number,) = [node.args[1] for node in graph.graph.nodes if is_call(node.target)]
    assert [outer[first].owner, inner[number].owner, outer[second].owner] == [1.0, 2.0, 3.0]
