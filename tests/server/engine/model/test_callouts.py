"""What a graph keeps of a call, and that it finds the present when it runs."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from peftserve.server.engine.model.callouts import Calls, call_out, is_traced, leaving_calls


class Scale:
    """What a step would be given."""

    def __init__(self) -> None:
        self.factor = 2.0

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return call_out(lambda x: x * self.factor, torch.empty_like, x + 1) - 1


def traced(factor: float) -> tuple[torch.fx.GraphModule, Calls]:
    scale = Scale()
    scale.factor = factor
    with leaving_calls() as calls:
        return make_fx(lambda x: scale.apply(x), tracing_mode="fake")(torch.zeros(1)), calls


def test_outside_of_a_graph_it_is_what_it_runs() -> None:
    assert not is_traced()
    assert Scale().apply(torch.ones(3)).tolist() == [3.0, 3.0, 3.0]


def test_a_graph_calls_back_and_reads_what_is_there_then() -> None:
    scale = Scale()
    with leaving_calls() as calls:
        assert is_traced()
        graph = make_fx(lambda x: scale.apply(x), tracing_mode="fake")(torch.zeros(3))
    assert not is_traced()
    assert [node.target for node in graph.graph.nodes].count(torch.ops.peftserve.call_out.default) == 1
    for scale.factor in (2.0, -1.0):
        assert graph(torch.ones(3)).tolist() == [2 * scale.factor - 1] * 3
    del calls


def test_calls_are_forgotten_with_their_graph() -> None:
    with leaving_calls() as calls:
        graph = make_fx(lambda x: Scale().apply(x), tracing_mode="fake")(torch.zeros(3))
    graph(torch.ones(3))
    del calls
    with pytest.raises(KeyError):
        graph(torch.ones(3))


def test_two_graphs_at_a_time_keep_their_own() -> None:
    """One may be traced again after another has gone."""
    first, second = traced(1.0), traced(2.0)
    del first
    third = traced(3.0)
    assert [graph(torch.ones(1)).item() for graph, _ in (second, third)] == [3.0, 5.0]
