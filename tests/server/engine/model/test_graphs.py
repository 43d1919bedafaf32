"""Which recording runs a step, and when one is made."""

from collections.abc import Callable

import pytest
import torch

from peftserve.server.engine.model import graphs as graphs_module
from peftserve.server.engine.model.graphs import DecodeGraphs
from peftserve.server.engine.model.inputs import StepInputs


class Memory:
    """What kernels would read: `offset` is added to each id. It is the step's once `begin` has run."""

    def __init__(self) -> None:
        self.generation = 0
        self.offset = 0
        self.recorded: list[tuple[int, bool]] = []
        self.bypassed = False
        self.next = 0

    def prepare(self, rows: int, bypassed: bool) -> None:
        self.bypassed, self.offset = bypassed, 0

    def begin(self) -> None:
        self.offset = self.next

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        return torch.stack([inputs.ids + self.offset, inputs.positions], 1).float()

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        out = run()
        self.recorded.append((len(out), self.bypassed))

        def replay() -> None:
            out.copy_(run())

        return replay, out


@pytest.fixture
def memory() -> Memory:
    return Memory()


def make(memory: Memory, most_rows: int) -> DecodeGraphs:
    device = torch.device("cpu")
    generation = lambda: memory.generation  # noqa: E731
    return DecodeGraphs(memory.forward, memory.prepare, generation, memory, most_rows=most_rows, device=device)


def step(graphs: DecodeGraphs, memory: Memory, ids: list[int], offset: int, bypassed: bool = True) -> list[float]:
    memory.next = offset
    inputs = StepInputs(torch.tensor(ids), torch.arange(len(ids)), None)
    rows = graphs.rows_for(len(ids))
    assert rows is not None
    logits = graphs.run(rows, bypassed, inputs, memory.begin)
    assert logits[:, 1].tolist() == list(range(len(ids)))
    found: list[float] = logits[:, 0].tolist()
    return found


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 20]), (10_000, None)]
)
def test_the_ladder_ends_with_the_largest_step(memory: Memory, most: int, sizes: list[int] | None) -> None:
    graphs = make(memory, most)
    assert graphs.sizes == (sizes or list(graphs_module.SIZES))
    assert graphs.rows_for(graphs.sizes[-1]) == graphs.sizes[-1]
    assert graphs.rows_for(graphs.sizes[-1] + 1) is None
    assert graphs.rows_for(1) == 1


def test_a_step_runs_in_the_smallest_recording_that_holds_it(memory: Memory) -> None:
    graphs = make(memory, 8)
    graphs.capture()
    assert sorted(memory.recorded) == [(rows, bypassed) for rows in (1, 2, 4, 8) for bypassed in (False, True)]
    memory.recorded.clear()
    assert step(graphs, memory, [5, 6, 7], 10) == [15, 16, 17]
    assert step(graphs, memory, [1], 20, bypassed=False) == [21]
    assert step(graphs, memory, [1, 2, 3, 4, 5], 0) == [1, 2, 3, 4, 5]
    assert not memory.recorded


def test_a_recording_of_memory_that_is_gone_is_made_anew(memory: Memory) -> None:
    graphs = make(memory, 4)
    graphs.capture()
    memory.recorded.clear()
    memory.generation += 1
    assert step(graphs, memory, [1, 2], 7) == [8, 9]
    assert memory.recorded == [(2, True)]
    assert step(graphs, memory, [3, 4], 1) == [4, 5]
    assert memory.recorded == [(2, True)]
