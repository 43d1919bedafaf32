"""Threads that read, check, compile, copy and prepare adapters, so that the step loop never does: one lane for each.

A copy to the device waits for no compilation, and what requests wait for is not compiled behind what somebody uploads.
Each lane that requests wait for has one worker: loads are bound by the disk and by copies, and a second one would only
take time from the steps. None waits for the device: what comes behind a copy is prepared while that runs.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import torch

from .copies import Copies, Copy, Event, Pieces
from .packing import Blob
from .turns import Turns

INSPECTORS = 2  # so that one client's large upload does not hold up all others'

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Load(Protocol[T_co]):
    """An adapter on its way to the device. Asking never waits."""

    def done(self) -> bool: ...

    def result(self) -> T_co:
        """Return what was prepared, once it is done. Raises what was raised meanwhile."""


class AdapterLoader:
    """The loader's threads. compile: an adapter's key to its blob; raises AdapterError."""

    def __init__(self, compile: Callable[[str], Blob], copies: Copies) -> None:
        self._compile = compile
        self._copies = copies
        self._copying = _one_thread("adapter-copies")
        self._fetching = _one_thread("adapter-loader")
        self._inspecting = Turns(INSPECTORS, "adapter-inspector", use_one_core)

    def fetch(self, key: str) -> Future[Blob]:
        """Compile an adapter of the store. Returns the future of its blob."""
        return self._fetching.submit(self._compile, key)

    def inspect(self, tenant: str, task: Callable[[], T]) -> Future[T]:
        """Run an inspection, which nothing else waits for, by turns of the tenants."""
        return self._inspecting.submit(tenant, task)

    def load(self, pieces: Pieces, prepare: Callable[[], T]) -> Load[T]:
        """Copy the pieces into the arena, and prepare what is to be attached once the device has all of them.

        The copies begin when all steps so far have run, which may still read what they replace.
        """
        return _Load(self._copying.submit(self._load, self._copies.behind_steps(), tuple(pieces), prepare))

    def close(self) -> None:
        """Give up what has not begun, and wait for the rest."""
        self._copying.shutdown(wait=False, cancel_futures=True)
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._inspecting.close()
        self._fetching.shutdown(wait=True)
        self._copying.shutdown(wait=True)

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


def _one_thread(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=use_one_core)
