"""The limit on uploads that are being received, and each tenant's share of it."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .http.errors import ApiError
from .tenancy.tenant import Tenant

CAPACITY = 256
GUARANTEED = 8  # of each tenant, beside the capacity
RETRY_SECONDS = 5


class UploadPlaces:
    """The places for uploads, of all tenants. Whoever asks may have all that are free, as with sequences."""

    def __init__(self, capacity: int = CAPACITY, guaranteed: int = GUARANTEED) -> None:
        self._capacity = capacity
        self._guaranteed = guaranteed
        self._taken: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing is being received."""
        await self._idle.wait()

    @contextmanager
    def take(self, tenant: Tenant) -> Iterator[None]:
        """Hold a place while the block runs. Raises ApiError 429."""
        total, own = self._taken.total(), self._taken[tenant.name]
        if total >= self._capacity and (own >= self._guaranteed or total >= 2 * self._capacity):
            raise ApiError(
                429,
                f"{total} uploads are being received, {own} of them from you; try again later.",
                code="too_many_uploads",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        self._taken[tenant.name] += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._taken[tenant.name] -= 1
            if not self._taken[tenant.name]:
                del self._taken[tenant.name]
            if not self._taken:
                self._idle.set()
