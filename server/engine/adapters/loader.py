"""A thread that reads, checks, compiles, copies and prepares adapters, so that the step loop never does.

One worker: loads are bound by the disk and by copies, and a second one would only take time from the steps. Nor does it
wait for the device: what comes behind a copy is prepared while that runs.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import torch

from .copies import Copies, Copy, Event, Pieces
from .packing import Blob

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Load(Protocol[T_co]):
    """An adapter on its way to the device. Asking never waits."""

    def done(self) -> bool: ...

    def result(self) -> T_co:
        """Return what was prepared, once it is done. Raises what was raised meanwhile."""


class AdapterLoader:
    """The loader's thread. compile: an adapter's key to its blob; raises AdapterError."""

    def __init__(self, compile: Callable[[str], Blob], copies: Copies) -> None:
        self._compile = compile
        self._copies = copies
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="adapter-loader", initializer=use_one_core)

    def fetch(self, key: str) -> Future[Blob]:
        """Compile an adapter of the store. Returns the future of its blob."""
        return self._worker.submit(self._compile, key)

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Run any other work on this thread."""
        return self._worker.submit(task)

    def load(self, pieces: Pieces, prepare: Callable[[], T]) -> Load[T]:
        """Copy the pieces into the arena, and prepare what is to be attached once the device has all of them.

        The copies begin when all steps so far have run, which may still read what they replace.
        """
        return _Load(self._worker.submit(self._load, self._copies.behind_steps(), tuple(pieces), prepare))

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _load(self, copy: Copy, pieces: Pieces, prepare: Callable[[], T]) -> tuple[T, Event | None]:
        end = copy(pieces)
        return prepare(), end


class _Load(Generic[T]):
    def __init__(self, work: Future[tuple[T, Event | None]]) -> None:
        self._work = work

    def done(self) -> bool:
        if not self._work.done() or self._work.exception() is not None:
            return self._work.done()
        _, end = self._work.result()
        return end is None or end.query()

    def result(self) -> T:
        prepared, _ = self._work.result()
        return prepared


def use_one_core() -> None:
    """Let torch use one core on this thread: a second team of threads would take the cores from the steps."""
    torch.set_num_threads(1)
