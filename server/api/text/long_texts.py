"""Threads for work on long texts that lets go of the interpreter or takes it a little at a time.

Knows how long the texts are, and nothing else of the work. One thread is for those of middle length and one for longer
ones, so that a long text waits for long ones only, and all of them together leave the other cores to the engine.
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
    """For one event loop. Its threads start with the first long text, and end with it."""

    def __init__(self) -> None:
        self._long = _Lane("long-texts")
        self._longest = _Lane("longest-texts")

    async def run(self, length: int, work: Callable[[], T]) -> T:
        """What `work` returns, done at once where `length` characters are few. Raises ApiError 429 or what it does."""
        if length < LONG_TEXT:
            return work()
        return await (self._long if length < LONGEST_TEXT else self._longest).run(length, work)


class _Lane:
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
