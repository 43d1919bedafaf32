"""Which recording runs a step, that all are made at start, and that they outlive whoever made them."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from peftserve.kernels.bypass.layout import Capacity, StepKind
from peftserve.server.engine.model import graphs as graphs_module
from peftserve.server.engine.model.graphs import CudaRecorder, DecodeGraphs, make_recorder
from peftserve.server.engine.model.inputs import StepInputs

CPU = torch.device("cpu")
EACH, TILES, FEW = StepKind


class Memory:
    """What kernels would read: the offset is added to each id."""

    def __init__(self) -> None:
        self.offset = torch.zeros(1)
        self.ids, self.positions = (torch.zeros(16, dtype=torch.int64) for _ in range(2))
        self.prepared: list[tuple[int, StepKind | None]] = []

    def inputs(self, rows: int) -> StepInputs:
        return StepInputs(self.ids[:rows], self.positions[:rows], None)

    def prepare(self, capacity: Capacity, bypassed: bool) -> None:
        self.prepared.append((capacity.rows, capacity.kind if bypassed else None))
        self.offset.zero_()

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        return torch.stack([inputs.ids + self.offset, inputs.positions.float()], 1)


class Again:
    """Runs the function itself."""

    def __init__(self, run: Callable[[], torch.Tensor]) -> None:
        self.output = run()
        self._run = run

    def __call__(self) -> None:
        self.output.copy_(self._run())


class Records:
    def __init__(self) -> None:
        self.rows: list[int] = []

    def record(self, run: Callable[[], torch.Tensor]) -> Again:
        again = Again(run)
        self.rows.append(len(again.output))
        return again


def make(memory: Memory, most_rows: int, recorder: Any = None) -> DecodeGraphs:
    return DecodeGraphs(memory.forward, recorder or Records(), memory.inputs, most_rows=most_rows)


def step(graphs: DecodeGraphs, memory: Memory, ids: list[int], offset: int, bypassed: bool = True) -> list[float]:
    memory.offset.fill_(offset)
    memory.ids[: len(ids)], memory.positions[: len(ids)] = torch.tensor(ids), torch.arange(len(ids))
    capacity = graphs.capacity_for(len(ids), StepKind.FEW)
    assert capacity is not None
    logits = graphs.run(capacity, bypassed)[: len(ids)]
    assert logits[:, 1].tolist() == list(range(len(ids)))
    found: list[float] = logits[:, 0].tolist()
    return found


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 20]), (10_000, None)]
)
def test_the_ladder_ends_with_the_largest_step(most: int, sizes: list[int] | None) -> None:
    graphs = make(Memory(), most)
    assert graphs.sizes == (sizes or list(graphs_module.SIZES))
    assert graphs.capacity_for(graphs.sizes[-1], StepKind.EACH) == Capacity(graphs.sizes[-1], StepKind.EACH)
    assert graphs.capacity_for(graphs.sizes[-1] + 1, StepKind.EACH) is None
    assert graphs.capacity_for(1, StepKind.EACH) == Capacity(1, StepKind.EACH)


@pytest.mark.parametrize(
    ("rows", "found"),
    [(1, [EACH, EACH, EACH]), (4, [EACH, FEW, FEW]), (20, [EACH, FEW, FEW]), (40, [EACH, TILES, FEW])],
)
def test_a_step_runs_in_a_recording_of_its_kind_where_kinds_differ(rows: int, found: list[StepKind]) -> None:
    graphs = make(Memory(), 48)
    assert [graphs.capacity_for(rows, kind).kind for kind in (EACH, TILES, FEW)] == found  # type: ignore[union-attr]


def test_a_step_runs_in_the_smallest_recording_that_holds_it() -> None:
    memory, recorder = Memory(), Records()
    graphs = make(memory, 8, recorder)
    graphs.capture(memory.prepare)
    kinds = {8: (EACH, FEW), 4: (EACH, FEW), 2: (EACH,), 1: (EACH,)}
    assert memory.prepared == [(rows, kind) for rows, there in kinds.items() for kind in (*there, None)]
    assert recorder.rows == [8, 8, 8, 4, 4, 4, 2, 2, 1, 1]
    assert len(graphs) == 10
    assert step(graphs, memory, [5, 6, 7], 10) == [15, 16, 17]
    assert step(graphs, memory, [1], 20, bypassed=False) == [21]
    assert step(graphs, memory, [1, 2, 3, 4, 5], 0) == [1, 2, 3, 4, 5]
    assert len(recorder.rows) == 10


def test_graphs_of_cuda_serve_every_step_in_one_pool(simulated_cuda: Any) -> None:
    memory = Memory()
    graphs = make(memory, 4, CudaRecorder(CPU))
    graphs.capture(memory.prepare)
    assert simulated_cuda.captures == 1 + 7, "the one that holds the pool; three sizes with and without, one of 2 kinds"
    assert [pool.graphs for pool in simulated_cuda.pools.values()] == [8]
    assert step(graphs, memory, [1, 2], 7) == [8, 9]
    assert step(graphs, memory, [3, 4, 5], 1) == [4, 5, 6]
    assert step(graphs, memory, [3, 4], 2, bypassed=False) == [5, 6]
    assert simulated_cuda.captures == 8


def test_a_pool_outlives_the_graphs_in_it(simulated_cuda: Any) -> None:
    recorder, x = CudaRecorder(CPU), torch.ones(2)
    for factor in (2.0, 3.0):
        recording = recorder.record(lambda factor=factor: x * factor)
        recording()
        assert recording.output.tolist() == [factor, factor]
        del recording
        gc.collect()
        assert [pool.graphs for pool in simulated_cuda.pools.values()] == [1]


def test_a_recording_holds_what_it_reads(simulated_cuda: Any) -> None:
    recorder = CudaRecorder(CPU)

    def record() -> Any:
        weights = torch.tensor([2.0, 3.0])
        return recorder.record(lambda: weights * 2)

    recording = record()
    gc.collect()
    recording()
    assert recording.output.tolist() == [4.0, 6.0]


def test_only_a_gpu_has_graphs(simulated_cuda: Any) -> None:
    assert make_recorder(CPU) is None
