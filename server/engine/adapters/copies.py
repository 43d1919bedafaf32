"""Copies from host memory into the arena, beside the steps: on a GPU on a stream of its own, so no step waits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

Pieces = Sequence[tuple[torch.Tensor, int]]
"""Each tensor, (elements,), and the element of the arena where it is to begin."""


class Event(Protocol):
    """A point in the device's work, such as a CUDA event."""

    def query(self) -> bool:
        """Return whether the device has reached it. Never waits."""


Copy = Callable[[Pieces], Event | None]
"""Copies pieces into the arena, on any thread. Returns the event of their end; None if they are there already."""


class Copies(Protocol):
    """The way into one arena."""

    def behind_steps(self) -> Copy:
        """Return a copy that begins when the device has run all steps so far. Runs on the step loop's thread."""


class HostCopies:
    """Copies into an arena in host memory, where steps run only while their caller waits."""

    def __init__(self, arena: torch.Tensor) -> None:
        self._arena = arena

    def behind_steps(self) -> Copy:
        return self._copy

    def _copy(self, pieces: Pieces) -> None:
        copy_pieces(pieces, self._arena)


class StreamCopies:
    """Copies into an arena on a GPU, from pinned memory, which torch reuses only when the copies from it are done."""

    def __init__(self, arena: torch.Tensor) -> None:
        self._arena = arena
        self._stream = torch.cuda.Stream(arena.device)

    def behind_steps(self) -> Copy:
        return partial(self._enqueue, torch.cuda.current_stream(self._arena.device).record_event())

    def _enqueue(self, steps: torch.cuda.Event, pieces: Pieces) -> Event:
        self._stream.wait_event(steps)
        with torch.cuda.stream(self._stream):
            copy_pieces(pieces, self._arena)
        end: Event = self._stream.record_event()
        return end


def make_copies(arena: torch.Tensor) -> Copies:
    return StreamCopies(arena) if arena.is_cuda else HostCopies(arena)


def copy_pieces(pieces: Pieces, arena: torch.Tensor) -> None:
    for data, start in pieces:
        arena[start : start + data.numel()].copy_(data, non_blocking=True)
