"""Decode steps as CUDA graphs: one launch for the whole forward pass, and all of them recorded at start.

A graph is for a number of rows, and serves every step of up to as many: whatever adapters run, come or go is in device
memory that the kernels read, at addresses that stay for as long as the model is served. Rows beyond the step's compute
what nobody reads. There is one without bypasses, and one for each kind of step with them: how many rows share an
adapter decides how the bypasses' launches are cut.
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
    """The steps that a graph is for. bypassed: their kind; None for a graph without the kernels of bypasses."""

    rows: int
    bypassed: StepKind | None


class Recording(Protocol):
    """Work on the device that has been recorded. A call repeats it, and overwrites `output`.

    Holds all the memory that the work reads.
    """

    @property
    def output(self) -> torch.Tensor: ...
    def __call__(self) -> None: ...


class Recorder(Protocol):
    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        """Record all that one call of `run` does on the device; the tensor it returns is the output."""


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory, since no two of them run at once.

    A pool dies with the last graph in it, and nothing can be captured into a dead one. So the first graph does next to
    nothing, lives as long as the recorder, and keeps the pool alive for the others.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream()
        self._anchor = capture(lambda: torch.zeros(1, device=device), self._stream)

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        return capture(run, self._stream, pool=self._anchor.pool())


def make_recorder(device: torch.device) -> Recorder | None:
    return CudaRecorder(device) if device.type == "cuda" else None


class DecodeGraphs:
    """The graphs of one model, for decode steps of up to `most_rows` rows.

    forward: the model on some inputs; its kernels find the rest of the step in device memory. inputs: from a number of
    rows to the memory in which a graph of so many finds its inputs, in each step.
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

        prepare: sets the memory that the kernels read to a step of no sequences, in a graph of that capacity, with
        bypasses or without. Raises RuntimeError if the model cannot be recorded, such as for looking at a tensor's
        values.
        """
        kinds = [GraphKey(rows, kind) for rows in reversed(self.sizes) for kind in (*kinds_for(rows), None)]
        for kind in tqdm(kinds, desc="capturing CUDA graphs", unit="graph", disable=None):
            prepare(Capacity(kind.rows, kind.bypassed or StepKind.EACH), kind.bypassed is not None)
            self._graphs[kind] = self._recorder.record(self._run_of(kind.rows))

    def __len__(self) -> int:
        """Return how many graphs have been recorded."""
        return len(self._graphs)

    def capacity_for(self, num_rows: int, kind: StepKind) -> Capacity | None:
        """Return what the graph for a step of so many rows has room for; None if no graph is large enough."""
        place = bisect_left(self.sizes, num_rows)
        if place == len(self.sizes):
            return None
        rows = self.sizes[place]
        there = kinds_for(rows)
        return Capacity(rows, kind if kind in there else there[-1])

    def run(self, capacity: Capacity, bypassed: bool) -> torch.Tensor:
        """Run the step that is in the device memory. Returns the logits (rows, vocabulary) of all rows of the graph.

        The next step overwrites them.
        """
        recording = self._graphs[GraphKey(capacity.rows, capacity.kind if bypassed else None)]
        recording()
        return recording.output

    def _run_of(self, rows: int) -> Callable[[], torch.Tensor]:
        inputs = self._inputs(rows)
        return lambda: self._forward(inputs)


def sizes_up_to(most_rows: int) -> list[int]:
    """Return the numbers of rows for which there are graphs, so that steps of up to `most_rows` find one.

    Steps of more than the largest of `SIZES` are launched without.
    """
    largest = min(most_rows, SIZES[-1])
    return [*(size for size in SIZES if size < largest), largest]
