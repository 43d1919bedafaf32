"""What stands in for a GPU's graphs fails where a GPU fails."""

import gc
from typing import Any

import pytest
import torch


def captured(run: Any, pool: Any = None) -> tuple[Any, Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        out = run()
    return graph, out


def test_a_replay_runs_on_the_memory_that_was_captured(simulated_cuda: Any) -> None:
    x, y = torch.tensor([1.0, 2.0]), torch.zeros(2)
    graph, out = captured(lambda: y.add_((x + 1).view(2)) * 2)
    assert out.isnan().all(), "a capture runs nothing"
    y.zero_()
    x.fill_(4.0)
    graph.replay()
    assert (y.tolist(), out.tolist()) == ([5.0, 5.0], [10.0, 10.0])
    y = torch.full((2,), 100.0)  # moved; the old one is gone
    gc.collect()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        graph.replay()


def test_a_buffer_that_moved_and_lives_on_is_read_where_it_was(simulated_cuda: Any) -> None:
    buffers = [torch.tensor([1.0])]
    graph, out = captured(lambda: buffers[-1] + 1)
    buffers.append(torch.tensor([5.0]))
    graph.replay()
    assert out.tolist() == [2.0]


def test_a_graph_tells_which_memory_it_reads_and_did_not_make(simulated_cuda: Any) -> None:
    x, y, other = torch.ones(2), torch.zeros(2), torch.ones(2)
    graph, out = captured(lambda: y.add_(x * 2) + 1)
    assert simulated_cuda.addresses() == {x.data_ptr(), y.data_ptr()}
    assert not {other.data_ptr(), out.data_ptr()} & simulated_cuda.addresses()
    del graph
    assert simulated_cuda.addresses() == set()


def test_launches_are_recorded_like_operators(simulated_cuda: Any) -> None:
    x = torch.zeros(1)
    graph, _ = captured(lambda: simulated_cuda.launch(lambda out, *, by: out.add_(by), (x,), {"by": 3}))
    x.zero_()
    graph.replay()
    assert x.tolist() == [3.0]
    assert simulated_cuda.addresses() == {x.data_ptr()}


def test_new_memory_holds_nothing(simulated_cuda: Any) -> None:
    graph, out = captured(lambda: torch.empty(3) + 1)
    graph.replay()
    assert out.isnan().all()


def test_a_pool_dies_with_its_last_graph(simulated_cuda: Any) -> None:
    handle = torch.cuda.graph_pool_handle()
    graph, _ = captured(lambda: torch.ones(1), handle)
    second, _ = captured(lambda: torch.ones(1), graph.pool())
    del graph
    third, _ = captured(lambda: torch.ones(1), handle)
    del second, third
    gc.collect()
    with pytest.raises(RuntimeError, match="INTERNAL ASSERT FAILED at CUDACachingAllocator"):
        captured(lambda: torch.ones(1), handle)


def test_no_value_may_be_looked_at_while_a_graph_is_captured(simulated_cuda: Any) -> None:
    x = torch.ones(1)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        captured(lambda: x * x.item())
    assert x.item() == 1.0
