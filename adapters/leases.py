"""Counts of the running requests that hold each adapter, so that a deletion waits for them. Knows digests, no names.

All calls come from the one event loop. A lease taken in the same turn of the loop as the look-up of its version
(no await between) can never miss a deletion: whoever deletes looks at the leases after the row is gone.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from .resolved import Resolved


class Holders(Protocol):
    """The requests that hold adapters: `Leases`, or those of several processes together."""

    async def idle(self, digest: str) -> None:
        """Wait until no request holds an adapter. Another may take it right after, unless no row refers to it."""

    async def is_held(self, digest: str) -> bool:
        """Return whether any request holds an adapter."""


class Leases:
    """The leases of one process, by digest."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def acquire(self, resolved: Resolved) -> None:
        """Hold all adapters of a request until `release`."""
        self._counts.update(ref.digest for ref, _ in resolved.members)

    def release(self, resolved: Resolved) -> None:
        """Give back what `acquire` has taken for this request."""
        for ref, _ in resolved.members:
            assert self._counts[ref.digest] > 0, "released more often than acquired"
            self._counts[ref.digest] -= 1
            if self._counts[ref.digest] == 0:
                self._forget(ref.digest)

    @contextmanager
    def held(self, resolved: Resolved) -> Iterator[None]:
        """A context in which the adapters of a request are held. To be entered as `acquire` is called."""
        self.acquire(resolved)
        try:
            yield
        finally:
            self.release(resolved)

    def count(self, digest: str) -> int:
        """Return the number of requests that hold an adapter."""
        return self._counts.get(digest, 0)

    def counts(self) -> dict[str, int]:
        """Return digest to number of requests, for each adapter that any request holds."""
        return dict(self._counts)

    async def is_held(self, digest: str) -> bool:
        """Return whether any request holds an adapter."""
        return digest in self._counts

    async def idle(self, digest: str) -> None:
        """Wait until no request holds an adapter. Another may take it right after."""
        while digest in self._counts:
            future = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(digest, []).append(future)
            await future

    def check_integrity(self) -> None:
        """Raise RuntimeError if counts and waiters contradict each other."""
        if any(count <= 0 for count in self._counts.values()) or self._waiting.keys() - self._counts.keys():
            raise RuntimeError("the leases are inconsistent")

    def _forget(self, digest: str) -> None:
        del self._counts[digest]
        for future in self._waiting.pop(digest, ()):
            if not future.cancelled():
                future.set_result(None)
