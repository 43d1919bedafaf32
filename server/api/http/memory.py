"""The memory that all bodies together may take while they are received, in one process.

Knows bytes; knows neither ASGI nor what is in a body.
"""

from collections.abc import Callable
from types import TracebackType

from .errors import ApiError, unavailable

FREE = 64 << 10  # bytes of each body that are not counted: what a connection may take anyway


class BodyMemory:
    """The memory for bodies. capacity: in bytes, beside what is free. refused: called when a body gets no more."""

    def __init__(self, capacity: int, refused: Callable[[], None] = lambda: None) -> None:
        self.taken = 0
        self._capacity = capacity
        self._refused = refused

    def share(self, most: int) -> "Share":
        """Return a share for one body, of which no more than `most` bytes are in memory at once."""
        return Share(self, most)

    def take(self, number: int) -> None:
        """Take `number` bytes. Raises ApiError 503 if there are not as many left."""
        if self.taken + number > self._capacity:
            self._refused()
            raise _full()
        self.taken += number


class Share:
    """One body's share of the memory. As a context manager it is given back at the end; `close` does it earlier."""

    def __init__(self, memory: BodyMemory, most: int) -> None:
        self._memory = memory
        self._most = most
        self._received = 0
        self._taken = 0

    def add(self, number: int) -> None:
        """Note that `number` more bytes have come. Raises ApiError 503 if there is no room for them."""
        self._received += number
        wanted = min(self._received, self._most) - FREE
        if wanted > self._taken:
            self._memory.take(wanted - self._taken)
            self._taken = wanted

    def close(self) -> None:
        """Give the share back; what still comes of the body is not counted."""
        self._memory.taken -= self._taken
        self._taken = 0
        self._most = 0

    def __enter__(self) -> "Share":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _full() -> ApiError:
    return unavailable("The server is receiving as many large bodies as it can; try again soon.", "body_memory_full")
