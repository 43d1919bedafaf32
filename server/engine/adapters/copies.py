"""Copies from host memory into the arena, beside the steps: on a GPU on a stream of its own, so no step waits."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

Pieces = Sequence[tuple[torch.Tensor, int]]
"""Each tensor, (elements,), and the element of the arena where it is to begin."""


class Event(Protocol):
    """A place in the device's work."""

    def query(self) -> bool:
        """Whether the device has come to it. Never waits."""


Copy = Callable[[Pieces], Event | None]
"""Of pieces into the arena, on any thread. Returns their end; None if they are there already."""


class Copies(Protocol):
    def behind_steps(self) -> Copy:
        """One that begins when the device has run all steps so far. On the step loop's thread."""


class HostCopies:
    """Of an arena in host memory, where no step runs behind its caller's back."""

    def __init__(self, arena: torch.Tensor) -> None:
        self._arena = arena

    def behind_steps(self) -> Copy:
        return self._copy

    def _copy(self, pieces: Pieces) -> None:
        copy_pieces(pieces, self._arena)


class StreamCopies:
    """Of an arena on a GPU. From pinned memory, which torch hands out again only when the copies from it are done."""

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
