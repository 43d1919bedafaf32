"""CUDA graphs that hold the memory that they read.

A graph knows addresses and nothing of who owns the memory there. So its owner keeps the captured function, and with it
all that the function reaches: modules, buffers, inputs.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")
Pool = Any  # as torch names one


class Captured(Generic[T]):
    """A captured function, whose work a call replays.

    output: what the function returned, filled anew by each call.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, run: Callable[[], T], output: T) -> None:
        self.output = output
        self._graph = graph
        self._run = run  # whatever it reaches lives as long as the graph

    def __call__(self) -> None:
        """Replay the graph on the current stream."""
        self._graph.replay()

    def pool(self) -> Pool:
        """Return the pool of the memory that the function allocated."""
        return self._graph.pool()


def capture(
    run: Callable[[], T], stream: torch.cuda.Stream, *, pool: Pool | None = None, warm_ups: int = 1
) -> Captured[T]:
    """Capture the work of `run` on the current device. Raises RuntimeError if it cannot be captured.

    `run` is first called `warm_ups` times: what is compiled or set up at a first call is not for the graph. All of it
    is on one stream, since libraries keep buffers by stream. pool: of another graph that still exists and does not run
    at the same time; by default the graph gets one of its own.
    """
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(warm_ups):
            run()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        output = run()
    return Captured(graph, run, output)
