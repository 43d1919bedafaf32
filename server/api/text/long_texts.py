"""Threads for work on long texts, for work that releases the interpreter's lock or takes it for short times.

Knows the lengths of the texts, and nothing else of the work. One thread is for texts of middle length and one for
longer ones, so that a text waits for others of its kind only, and together they leave the other cores to the engine.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ..http.errors import RETRY_SECONDS, ApiError

LONG_TEXT = 4096  # characters from which work leaves the event loop to others
LONGEST_TEXT = 1 << 17
MAX_WAITING = 1 << 25  # characters, as many as are done in half a minute

T = TypeVar("T")


class LongTexts:
    """The two threads, for one event loop. Each starts with its first text."""

    def __init__(self) -> None:
        self._long = _Lane("long-texts")
        self._longest = _Lane("longest-texts")

    async def run(self, length: int, work: Callable[[], T]) -> T:
        """Return what `work` returns, without a thread where its `length` in characters is small.

        Raises ApiError 429 if too much work waits, and what `work` raises.
        """
        if length < LONG_TEXT:
            return work()
        return await (self._long if length < LONGEST_TEXT else self._longest).run(length, work)


class _Lane:
    """One thread, and the number of characters that wait for it or are worked on."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting = 0  # characters

    async def run(self, length: int, work: Callable[[], T]) -> T:
        if self._waiting and self._waiting + length > MAX_WAITING:
            raise ApiError(
                429,
                "The server has too many long texts to read; try again later.",
                code="queue_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        self._waiting += length
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= length
