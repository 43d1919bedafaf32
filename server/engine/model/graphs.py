"""Decode steps as CUDA graphs: one launch for the whole forward pass, and all of them recorded at start.

A graph is for a number of rows, and serves every step of up to as many: whatever adapters run, come or go is in device
memory that the kernels read, at addresses that stay for as long as the model is served. Rows beyond the step's compute
what nobody reads. Those with bypasses are there for each kind of step: how many rows share an adapter decides how the
bypasses' launches are cut.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from tqdm import tqdm

from peftserve.kernels.bypass.layout import Capacity, StepKind, kinds_for
from peftserve.kernels.device.cuda_graphs import capture

from .inputs import StepInputs

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class GraphKey(NamedTuple):
    """What a graph is for. bypassed: the kind of its bypasses; None without their kernels in it."""

    rows: int
    bypassed: StepKind | None


class Recording(Protocol):
    """Called, it does once more all that was recorded, and fills `output` again. It holds all that this reads."""

    @property
    def output(self) -> torch.Tensor: ...
    def __call__(self) -> None: ...


class Recorder(Protocol):
    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Of all that `run` does, whose tensor is the output."""


class CudaRecorder:
    """All graphs share one pool of memory: they never run at once.

    A pool dies with the last graph in it, and nothing can be captured into a dead one. So the first is of next to
    nothing, lives as long as the recorder, and holds the pool for the others.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream()
        self._anchor = capture(lambda: torch.zeros(1, device=device), self._stream)

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        return capture(run, self._stream, pool=self._anchor.pool())


def make_recorder(device: torch.device) -> Recorder | None:
    return CudaRecorder(device) if device.type == "cuda" else None


class DecodeGraphs:
    """forward: the model on inputs whose kernels find the rest of the step in device memory. most_rows: of any step.

    inputs: where a graph of so many rows finds its own, in each step.
    """

    def __init__(
        self,
        forward: Callable[[StepInputs], torch.Tensor],
        recorder: Recorder,
        inputs: Callable[[int], StepInputs],
        *,
        most_rows: int,
    ) -> None:
        self.sizes = sizes_up_to(most_rows)
        self._forward = forward
        self._recorder = recorder  # lives as long as what it recorded
        self._inputs = inputs
        self._graphs: dict[GraphKey, Recording] = {}

    def capture(self, prepare: Callable[[Capacity, bool], None]) -> None:
        """Record all graphs, with a progress bar; the largest first, whose memory the others then use.

        prepare: sets the memory that the kernels read for a step of no sequences, in a graph of that capacity, with
        bypasses or without. Raises RuntimeError if the model cannot be recorded, such as for looking at a tensor's
        values.
        """
        kinds = [GraphKey(rows, kind) for rows in reversed(self.sizes) for kind in (*kinds_for(rows), None)]
        for kind in tqdm(kinds, desc="capturing CUDA graphs", unit="graph", disable=None):
            prepare(Capacity(kind.rows, kind.bypassed or StepKind.EACH), kind.bypassed is not None)
            self._graphs[kind] = self._recorder.record(self._run_of(kind.rows))

    def __len__(self) -> int:
        """Graphs that have been recorded."""
        return len(self._graphs)

    def capacity_for(self, num_rows: int, kind: StepKind) -> Capacity | None:
        """Of the graph for a step of so many rows; None if it is too large for any."""
        place = bisect_left(self.sizes, num_rows)
        if place == len(self.sizes):
            return None
        rows = self.sizes[place]
        there = kinds_for(rows)
        return Capacity(rows, kind if kind in there else there[-1])

    def run(self, capacity: Capacity, bypassed: bool) -> torch.Tensor:
        """Logits (rows, vocabulary) of a step for whose rows all logits are wanted.

        The memory that the graph reads is the step's. The logits are overwritten by the next step.
        """
        recording = self._graphs[GraphKey(capacity.rows, capacity.kind if bypassed else None)]
        recording()
        return recording.output

    def _run_of(self, rows: int) -> Callable[[], torch.Tensor]:
        inputs = self._inputs(rows)
        return lambda: self._forward(inputs)


def sizes_up_to(most_rows: int) -> list[int]:
    """Rows of the graphs for steps of up to so many, as far as there are graphs."""
    largest = min(most_rows, SIZES[-1])
    return [*(size for size in SIZES if size < largest), largest]
