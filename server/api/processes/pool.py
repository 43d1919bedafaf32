"""The API processes beside the first: started, told what to do, asked what they hold, replaced when they end.

There may be none, and then there is nothing to wait for. Knows the control messages; knows no HTTP.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Awaitable, Callable

from peftserve.adapters.leases import Leases

from ...wire.control import AwaitIdle, Call, Drain, Sample, Serve, WorkerStats
from ..metrics.totals import summed
from .link import WorkerGone, WorkerLink

logger = logging.getLogger(__name__)

STATS_SECONDS = 1.0  # from one look at a process's stats to the next, and the longest wait for them
SHORT_LIFE = 5.0  # seconds; of processes that end sooner, each is replaced later than the one before
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0

StartWorker = Callable[[int], Awaitable[WorkerLink]]


class WorkerPool:
    """count: how many. start: starts the one with a number, from 1 on. Raises OSError, EngineDead.

    ended: called with the number of one that has ended, before another takes its place.
    """

    def __init__(self, count: int, start: StartWorker, ended: Callable[[int], None]) -> None:
        self.past: dict[str, list[Sample]] = {}  # what those have counted that have ended
        self._start = start
        self._ended = ended
        self._links: dict[int, WorkerLink] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._serving = {number: asyncio.Event() for number in range(1, count + 1)}
        self._may_serve = asyncio.Event()
        self._stopping = False

    def launch(self) -> None:
        """Begin to start all, and to replace those that end."""
        self._keepers = [asyncio.create_task(self._keep(number)) for number in self._serving]

    async def serve(self) -> None:
        """Let all listen; returns when they do. Raises OSError or EngineDead where one cannot be started."""
        self._may_serve.set()
        serving = asyncio.create_task(self._all_serve())
        await asyncio.wait([serving, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            serving.cancel()
            for keeper in filter(asyncio.Task.done, self._keepers):
                keeper.result()

    async def stats(self) -> list[WorkerStats]:
        """Of all that run; as last heard, of one that takes long."""
        links = list(self._links.values())
        await asyncio.gather(*map(_fetch_soon, links))
        return [link.stats for link in links]

    async def idle(self, digest: str) -> None:
        """Wait until none of them holds an adapter, which the registry has forgotten."""
        await self._tell_all(lambda call_id: AwaitIdle(call_id, digest))

    async def holds(self, digest: str) -> bool:
        looks = await asyncio.gather(*(link.fetch_stats() for link in self._links.values()))
        return any(digest in stats.leases for stats in looks)

    async def drain(self) -> None:
        """Let none take new requests; returns when nothing runs."""
        self._stopping = True
        await self._tell_all(Drain)

    async def stop(self, patience: float) -> None:
        """End what runs with an error, and the processes, after `patience` seconds by force."""
        self._stopping = True
        links = list(self._links.values())
        for link in links:
            link.tell_to_stop()
        await asyncio.gather(*(link.end(patience) for link in links))
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _keep(self, number: int) -> None:
        """One process after the other, for as long as the server lives.

        Raises OSError where the first ends before it serves, and what `start` raises.
        """
        for attempt in itertools.count():
            begun = time.monotonic()
            link = self._links[number] = await self._start(number)
            await self._attend(number, link)
            await link.end(0)
            del self._links[number]
            self.past = summed([self.past, link.stats.samples])
            self._ended(number)
            if self._stopping:
                return
            if not self._serving[number].is_set():
                raise OSError(f"API process {number} has ended before it served")
            logger.error("API process %d has ended; another takes its place", number)
            if time.monotonic() - begun < SHORT_LIFE:
                await asyncio.sleep(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))

    async def _attend(self, number: int, link: WorkerLink) -> None:
        """Until the process ends: let it serve when it may, and note its stats, which are lost with it."""
        serving = asyncio.create_task(self._let_serve(number, link))
        try:
            while not link.gone.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(link.gone.wait(), STATS_SECONDS)
                await _fetch_soon(link)
        finally:
            serving.cancel()

    async def _all_serve(self) -> None:
        for event in self._serving.values():
            await event.wait()

    async def _let_serve(self, number: int, link: WorkerLink) -> None:
        await self._may_serve.wait()
        with contextlib.suppress(WorkerGone):
            await link.call(Serve)
            self._serving[number].set()

    async def _tell_all(self, make: Callable[[int], Call]) -> None:
        """Returns when all have done it; one that ends has nothing more to do."""
        await asyncio.gather(*(_done_or_gone(link, make) for link in self._links.values()))


class SharedLeases:
    """Who holds adapters, in this process and in the others. own: the leases of this one."""

    def __init__(self, own: Leases, workers: WorkerPool) -> None:
        self._own = own
        self._workers = workers

    async def idle(self, digest: str) -> None:
        await asyncio.gather(self._own.idle(digest), self._workers.idle(digest))

    async def is_held(self, digest: str) -> bool:
        return bool(self._own.count(digest)) or await self._workers.holds(digest)


async def _done_or_gone(link: WorkerLink, make: Callable[[int], Call]) -> None:
    with contextlib.suppress(WorkerGone):
        await link.call(make)


async def _fetch_soon(link: WorkerLink) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(link.fetch_stats(), STATS_SECONDS)
