"""The thread that reads, checks, compiles and copies adapters, so that the step loop never does.

One worker: loads are bound by the disk and by copies, and a second one would only take time from the steps.
"""

from collections.abc import Callable
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
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader", initializer=_use_one_core)

    def fetch(self, key: str) -> Future[Blob]:
        """Compile an adapter of the store."""
        return self._worker.submit(self._compile, key)

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Any other work for this thread."""
        return self._worker.submit(task)

    def copy(self, blob: Blob, start: int) -> Future[None]:
        """Copy a blob to element `start` of the arena; done when the device has it."""
        return self._worker.submit(self._copy, blob, start)

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _copy(self, blob: Blob, start: int) -> None:
        target = self._arena[start : start + blob.data.numel()]
        if self._stream is None:
            target.copy_(blob.data)
            return
        with torch.cuda.stream(self._stream):
            target.copy_(blob.data, non_blocking=True)
        self._stream.synchronize()


def _use_one_core() -> None:
    """For this thread only: a second team of torch's threads would take the cores from the steps."""
    torch.set_num_threads(1)
