"""Decode steps as CUDA graphs: one launch for the whole forward pass.

A graph is for a number of rows, and serves every step of up to as many: whatever adapters run, come or go is in device
memory that the kernels read, at addresses that stay. Rows beyond the step's compute what nobody reads.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from tqdm import tqdm

from .inputs import StepInputs

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class Kind(NamedTuple):
    """What a graph is for. bypassed: with the kernels of the bypasses in it. generation: of the memory it knows."""

    rows: int
    bypassed: bool
    generation: int


class Recorder(Protocol):
    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """What does all that `run` did once more, and the tensor that it returned, which each time is then filled."""


class CudaRecorder:
    """All graphs share one pool of memory: they never run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # what is compiled or set up at a first call is not for the graph
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = run()
        return graph.replay, out


def make_recorder(device: torch.device) -> Recorder | None:
    return CudaRecorder() if device.type == "cuda" else None


class DecodeGraphs:
    """forward: the model on inputs whose kernels find the rest of the step in device memory.

    prepare: sets that memory for a step of no sequences, before a graph of so many rows is recorded.
    generation: of that memory: it changes when the graphs so far must not be replayed any more.
    most_rows: of any step.
    """

    def __init__(
        self,
        forward: Callable[[StepInputs], torch.Tensor],
        prepare: Callable[[int, bool], None],
        generation: Callable[[], int],
        recorder: Recorder,
        *,
        most_rows: int,
        device: torch.device,
    ) -> None:
        largest = min(most_rows, SIZES[-1])
        self.sizes = [*(size for size in SIZES if size < largest), largest]
        self._forward = forward
        self._prepare = prepare
        self._generation = generation
        self._recorder = recorder
        self._graphs: dict[Kind, tuple[Callable[[], None], torch.Tensor]] = {}
        self._ids = torch.zeros(self.sizes[-1], dtype=torch.int64, device=device)
        self._positions = torch.zeros(self.sizes[-1], dtype=torch.int64, device=device)

    def capture(self) -> None:
        """Record all graphs, with a progress bar; the largest first, whose memory the others then use.

        Raises RuntimeError if the model cannot be recorded, such as for looking at a tensor's values.
        """
        todo = [(rows, bypassed) for rows in reversed(self.sizes) for bypassed in (True, False)]
        for rows, bypassed in tqdm(todo, desc="capturing CUDA graphs", unit="graph", disable=None):
            self._record(rows, bypassed)

    def rows_for(self, num_rows: int) -> int | None:
        """Rows of the graph for a step of so many; None if it is too large for any."""
        place = bisect_left(self.sizes, num_rows)
        return self.sizes[place] if place < len(self.sizes) else None

    def run(self, rows: int, bypassed: bool, inputs: StepInputs, begin: Callable[[], None]) -> torch.Tensor:
        """Logits (rows of the inputs, vocabulary) of a step for whose rows all logits are wanted.

        begin: sets the device memory that the kernels read. The logits are overwritten by the next step.
        """
        begin()
        kind = Kind(rows, bypassed, self._generation())
        if kind not in self._graphs:
            self._record(rows, bypassed)
            begin()
        replay, logits = self._graphs[Kind(rows, bypassed, self._generation())]
        used = len(inputs.ids)
        self._ids[:used].copy_(inputs.ids, non_blocking=True)
        self._positions[:used].copy_(inputs.positions, non_blocking=True)
        replay()
        return logits[:used]

    def _record(self, rows: int, bypassed: bool) -> None:
        """Graphs of memory that is no longer there are forgotten."""
        self._prepare(rows, bypassed)
        generation = self._generation()
        self._graphs = {kind: graph for kind, graph in self._graphs.items() if kind.generation == generation}
        inputs = StepInputs(self._ids[:rows], self._positions[:rows], None)
        self._graphs[Kind(rows, bypassed, generation)] = self._recorder.record(lambda: self._forward(inputs))
