"""The limit on sequences in flight, each tenant's share of it, and whether the server takes new ones at all."""

import asyncio
from collections.abc import MutableSequence

from .http.errors import ApiError, bad_request, unavailable
from .tenancy.counts import TenantCounts, counts_of_one
from .tenancy.rate import FreeRate
from .tenancy.tenant import SERVER, Tenant

GUARANTEED = 16  # of so many places one is each tenant's own, whoever else has all of them


class Admission:
    """The admission of sequences in one process, by a capacity that all processes share.

    capacity: most sequences in flight, running and waiting together, in all processes of the server. counts: sequences
    in flight by process; all processes read it, and each writes its own at the place `own`. Two processes that look at
    the same moment may overshoot the capacity by what one of them admits then.

    Whoever asks may have all places that are free. A tenant that has few finds some even where others have taken all:
    these lie beside the capacity, and are as many again at most. tenants: sequences in flight by tenant.
    """

    def __init__(
        self, capacity: int, counts: MutableSequence[int], own: int = 0, tenants: TenantCounts | None = None
    ) -> None:
        self.capacity = capacity
        self.guaranteed = max(1, capacity // GUARANTEED)
        self.draining = False
        self._counts = counts
        self._own = own
        self._tenants = tenants or counts_of_one()
        self._rate = FreeRate()
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

    def enter(self, count: int, tenant: Tenant = SERVER) -> None:
        """Take room for the `count` sequences of one request. Raises ApiError 400, 429 or 503."""
        self._check(count, tenant)
        self._counts[self._own] += count
        self._tenants.add(tenant.name, count)
        self._rate.began()
        self._idle.clear()

    def check_room(self, tenant: Tenant) -> None:
        """Raise what `enter` would for a request of one sequence, before anything is known of it."""
        self._check(1, tenant)

    def leave(self, count: int, tenant: Tenant = SERVER) -> None:
        """Give back the room of `count` sequences."""
        self._counts[self._own] -= count
        self._tenants.add(tenant.name, -count)
        is_idle = self._counts[self._own] == 0
        self._rate.freed(count, is_idle)
        if is_idle:
            self._idle.set()

    def drain(self) -> None:
        """Take no new requests from now on."""
        self.draining = True

    async def idle(self) -> None:
        """Wait until nothing of this process is in flight."""
        await self._idle.wait()

    def seconds_until(self, places: int) -> int:
        """Return in how many seconds so many places have come free, if it goes on as in the last half minute."""
        return self._rate.seconds_until(places, len(self._counts))

    def check_open(self) -> None:
        """Raise ApiError 503 after `drain`."""
        if self.draining:
            raise unavailable("The server is shutting down and takes no new requests.", "shutting_down")

    def _check(self, count: int, tenant: Tenant) -> None:
        self.check_open()
        if count > self.capacity:
            raise _too_many(count, f"this server takes {self.capacity} at once")
        if tenant.max_queued is not None and count > tenant.max_queued:
            raise _too_many(count, f"this key may have {tenant.max_queued} in flight")
        total, own = self.in_flight_everywhere, self._tenants.of(tenant.name)
        if tenant.max_queued is not None and own + count > tenant.max_queued:
            raise self._no_share(count, own, tenant.max_queued, total)
        beside = own + count <= self.guaranteed and total + count <= 2 * self.capacity
        if total + count > self.capacity and not beside:
            raise self._full(
                f"The server's queue is full ({total} of {self.capacity} sequences); try again later.",
                "queue_full",
                total + count - self.capacity,
            )

    def _no_share(self, count: int, own: int, most: int, total: int) -> ApiError:
        """Return the error for who has no place left of its share. total: sequences of all."""
        message = (
            f"The request asks for {count} sequences, and {own} of the {most} that this key may have are in flight"
        )
        needed = own + count - most
        return self._full(f"{message}; try again later.", "rate_limit_exceeded", needed * max(total, 1) // max(own, 1))

    def _full(self, message: str, code: str, places: int) -> ApiError:
        """Return the error for who may come again when so many places have come free."""
        return ApiError(429, message, code=code, headers={"Retry-After": str(self.seconds_until(places))})


def _too_many(count: int, limit: str) -> ApiError:
    """Return the error for what no waiting makes possible."""
    return bad_request(f"The request asks for {count} sequences, prompts times n, and {limit}; ask for fewer.", "n")
