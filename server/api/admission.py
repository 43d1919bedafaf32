"""How many sequences may be in flight, and whether new ones are taken at all."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import RETRY_SECONDS, ApiError, bad_request, unavailable


class Admission:
    """capacity: most sequences in flight, running and waiting together."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.in_flight = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def enter(self, count: int) -> Iterator[None]:
        """Holds room for the `count` sequences of one request. Raises ApiError 400, 429 or 503."""
        self._check(count)
        self.in_flight += count
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= count
            if self.in_flight == 0:
                self._idle.set()

    def drain(self) -> None:
        """Take no new requests from now on."""
        self.draining = True

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    def check_open(self) -> None:
        if self.draining:
            raise unavailable("The server is shutting down and takes no new requests.", "shutting_down")

    def _check(self, count: int) -> None:
        self.check_open()
        if count > self.capacity:
            raise bad_request(f"The request asks for {count} sequences; this server takes {self.capacity} at once.")
        if self.in_flight + count > self.capacity:
            raise ApiError(
                429,
                f"The server's queue is full ({self.in_flight} of {self.capacity} sequences); try again later.",
                code="queue_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
