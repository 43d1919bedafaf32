"""The thread that reads, checks, compiles and copies adapters, so that the step loop never does.

One worker: loads are bound by the disk and by copies, and a second one would only take time from the steps.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from .packing import Blob

T = TypeVar("T")


class AdapterLoader:
    """compile: an adapter's key to its blob; raises AdapterError. arena: (elements,) on the device."""

    def __init__(self, compile: Callable[[str], Blob], arena: torch.Tensor) -> None:
        self._compile = compile
        self._arena = arena
        self._stream = torch.cuda.Stream(arena.device) if arena.is_cuda else None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader", initializer=use_one_core)

    def fetch(self, key: str) -> Future[Blob]:
        """Compile an adapter of the store."""
        return self._worker.submit(self._compile, key)

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Any other work for this thread."""
        return self._worker.submit(task)

    def copy(self, pieces: Sequence[tuple[torch.Tensor, int]]) -> Future[None]:
        """Copy each tensor to its element of the arena; done when the device has all of them, and all before them.

        The copies begin when all steps so far have run, which may still read what they replace.
        """
        steps = torch.cuda.current_stream(self._arena.device).record_event() if self._arena.is_cuda else None
        return self._worker.submit(self._copy, tuple(pieces), steps)

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _copy(self, pieces: tuple[tuple[torch.Tensor, int], ...], steps: torch.cuda.Event | None) -> None:
        if self._stream is None or steps is None:
            self._enqueue(pieces)
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(steps)
            self._enqueue(pieces)
        self._stream.synchronize()

    def _enqueue(self, pieces: tuple[tuple[torch.Tensor, int], ...]) -> None:
        for data, start in pieces:
            self._arena[start : start + data.numel()].copy_(data, non_blocking=True)


def use_one_core() -> None:
    """For this thread only: a second team of torch's threads would take the cores from the steps."""
    torch.set_num_threads(1)
