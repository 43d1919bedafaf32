"""The limit on sequences in flight, and whether the server takes new ones at all."""

import asyncio
from collections.abc import MutableSequence

from .http.errors import RETRY_SECONDS, ApiError, bad_request, unavailable


class Admission:
    """The admission of sequences in one process, by a capacity that all processes share.

    capacity: most sequences in flight, running and waiting together, in all processes of the server. counts: sequences
    in flight by process; all processes read it, and each writes its own at the place `own`. Two processes that look at
    the same moment may overshoot the capacity by what one of them admits then.
    """

    def __init__(self, capacity: int, counts: MutableSequence[int], own: int = 0) -> None:
        self.capacity = capacity
        self.draining = False
        self._counts = counts
        self._own = own
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Return the number of sequences of this process."""
        return self._counts[self._own]

    @property
    def in_flight_everywhere(self) -> int:
        """Return the number of sequences of all processes."""
        return sum(self._counts)

    def enter(self, count: int) -> None:
        """Take room for the `count` sequences of one request. Raises ApiError 400, 429 or 503."""
        self._check(count)
        self._counts[self._own] += count
        self._idle.clear()

    def leave(self, count: int) -> None:
        """Give back the room of `count` sequences."""
        self._counts[self._own] -= count
        if self._counts[self._own] == 0:
            self._idle.set()

    def drain(self) -> None:
        """Take no new requests from now on."""
        self.draining = True

    async def idle(self) -> None:
        """Wait until nothing of this process is in flight."""
        await self._idle.wait()

    def check_open(self) -> None:
        """Raise ApiError 503 after `drain`."""
        if self.draining:
            raise unavailable("The server is shutting down and takes no new requests.", "shutting_down")

    def _check(self, count: int) -> None:
        self.check_open()
        if count > self.capacity:
            raise bad_request(f"The request asks for {count} sequences; this server takes {self.capacity} at once.")
        in_flight = self.in_flight_everywhere
        if in_flight + count > self.capacity:
            raise ApiError(
                429,
                f"The server's queue is full ({in_flight} of {self.capacity} sequences); try again later.",
                code="queue_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
