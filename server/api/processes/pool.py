"""The pool of workers: started, told what to do, asked for their statistics, replaced when they end.

A pool may be empty, and then nothing is waited for. Knows the control messages; knows no HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from peftserve.adapters.leases import Leases

from ...wire.control import AwaitIdle, Call, Drain, Sample, Serve, WorkerStats
from ..engine.interface import EngineDead
from ..metrics.totals import summed
from .link import WorkerGone, WorkerLink

logger = logging.getLogger(__name__)

STATS_SECONDS = 1.0  # between two questions for a worker's statistics, and the longest wait for an answer
SHORT_LIFE = 5.0  # seconds; of processes that end sooner, each is replaced later than the one before
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0

StartWorker = Callable[[int], Awaitable[WorkerLink]]


class WorkerPool:
    """All workers of a server.

    count: how many. start: starts the worker of a number, from 1 on; raises OSError, EngineDead. ended: called with the
    number of a worker that has ended, before another takes its place.
    """

    def __init__(self, count: int, start: StartWorker, ended: Callable[[int], None]) -> None:
        self.past: dict[str, list[Sample]] = {}  # samples of workers that have ended, summed
        self._start = start
        self._ended = ended
        self._links: dict[int, WorkerLink] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._serving = {number: asyncio.Event() for number in range(1, count + 1)}
        self._may_serve = asyncio.Event()
        self._stopping = False

    def launch(self) -> None:
        """Begin to start all workers, and to replace those that end."""
        self._keepers = [asyncio.create_task(self._keep(number)) for number in self._serving]

    async def serve(self) -> None:
        """Let all listen, and return when they do. Raises OSError or EngineDead if one cannot be started."""
        self._may_serve.set()
        serving = asyncio.create_task(self._all_serve())
        await asyncio.wait([serving, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            serving.cancel()
            for keeper in filter(asyncio.Task.done, self._keepers):
                keeper.result()

    async def stats(self) -> list[WorkerStats]:
        """Return the statistics of all that run; those last heard of a worker that takes long to answer.

        What one that has ended meanwhile had counted is in `past`, and not among them, until the loop's next turn.
        """
        await asyncio.gather(*map(_fetch_soon, list(self._links.values())))
        return [link.stats for link in self._links.values()]

    async def idle(self, digest: str) -> None:
        """Wait until no worker holds an adapter that the registry has forgotten."""
        await self._tell_all(lambda call_id: AwaitIdle(call_id, digest))

    async def holds(self, digest: str) -> bool:
        """Return whether a request of any worker holds the adapter."""
        looks = await asyncio.gather(*(link.fetch_stats() for link in self._links.values()))
        return any(digest in stats.leases for stats in looks)

    async def drain(self) -> None:
        """Let no worker take new requests, and return when nothing runs."""
        self._stopping = True
        await self._tell_all(Drain)

    async def stop(self, patience: float) -> None:
        """End what runs with an error, and then the processes, by force after `patience` seconds."""
        self._stopping = True
        links = list(self._links.values())
        for link in links:
            link.tell_to_stop()
        await asyncio.gather(*(link.end(patience) for link in links))
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _keep(self, number: int) -> None:
        """Run worker `number`, one process after the other, for as long as the server lives.

        Until one has served, raises OSError if a process ends, and what `start` raises.
        """
        pause = FIRST_PAUSE
        while True:
            begun = time.monotonic()
            try:
                link = self._links[number] = await self._start(number)
            except (OSError, EngineDead) as error:
                if not self._serving[number].is_set():
                    raise
                logger.error("API process %d could not be started, and is tried again: %s", number, error)
            else:
                await self._attend(number, link)
                await link.end(0)
                del self._links[number]
                self.past = summed([self.past, link.stats.samples])
                self._ended(number)
                if not self._stopping and not self._serving[number].is_set():
                    raise OSError(f"API process {number} has ended before it served")
                logger.error("API process %d has ended; another takes its place", number)
            if self._stopping:
                return
            if time.monotonic() - begun >= SHORT_LIFE:
                pause = FIRST_PAUSE
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _attend(self, number: int, link: WorkerLink) -> None:
        """Until the process ends, let it serve when it may, and keep its statistics, which are lost with it."""
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
        """Make a call to all, and return when each has answered or ended."""
        await asyncio.gather(*(_done_or_gone(link, make) for link in self._links.values()))


class SharedLeases:
    """The leases of adapters in all processes. own: those of this process."""

    def __init__(self, own: Leases, workers: WorkerPool) -> None:
        self._own = own
        self._workers = workers

    async def idle(self, digest: str) -> None:
        """Wait until no request of any process holds the adapter."""
        await asyncio.gather(self._own.idle(digest), self._workers.idle(digest))

    async def is_held(self, digest: str) -> bool:
        """Return whether a request of any process holds the adapter."""
        return bool(self._own.count(digest)) or await self._workers.holds(digest)


async def _done_or_gone(link: WorkerLink, make: Callable[[int], Call]) -> None:
    with contextlib.suppress(WorkerGone):
        await link.call(make)


async def _fetch_soon(link: WorkerLink) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(link.fetch_stats(), STATS_SECONDS)
