"""Calls about adapters, which one replica answers, or all of them together.

Every replica has the same base and the same files, so one inspects for all and the others would say the same. A call
that one must answer waits for one to be there. What all must do, those that are away are told when they come back: an
engine outlives its connection, with all that it has in memory.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from ..api.engine.interface import EngineDead
from ..wire.faults import ReplicaLost
from ..wire.messages import Call, InspectAdapter, LoadAdapter, PinAdapters, ReleaseAdapter, Reply
from .engines import Engines
from .replica import Replica

logger = logging.getLogger(__name__)


class Calls:
    """The calls that have not been answered, and what is to be told to those that come.

    ready: returns the replicas that take calls. choose: returns one of these for an adapter's digest. engines: of all
    replicas, also of those that are away.
    """

    def __init__(
        self,
        ready: Callable[[], Sequence[Replica]],
        choose: Callable[[Sequence[Replica], str], Replica],
        engines: Engines,
    ) -> None:
        self._ready = ready
        self._choose = choose
        self._engines = engines
        self._pinned: list[str] = []
        self._ids = itertools.count(1)
        self._someone = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, call: Call, answer: Callable[[Reply], None]) -> None:
        """Make a call. answer: called with its reply, unless nobody has heard it by the end of the process."""

        async def run() -> None:
            answer(replace(await self._made(call), call_id=call.call_id))

        self._keep(asyncio.create_task(run(), name="call"))

    def welcome(self, replica: Replica) -> None:
        """Have a replica that has just become ready answer who waits, and do what it may have missed.

        That nothing is pinned is told as well: it may have the pins of before.
        """
        self._someone.set()
        missed: list[Call] = [ReleaseAdapter(0, digest) for digest in replica.engine.unreleased]
        for call in (*missed, PinAdapters(0, self._pinned)):
            self._keep(asyncio.create_task(self._make_up(replica, call), name="missed call"))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _made(self, call: Call) -> Reply:
        match call:
            case InspectAdapter(_, digest) | LoadAdapter(_, digest):
                self._engines.retain([digest])
                return await self._of_one(call, digest)
            case PinAdapters(_, digests):
                self._engines.retain(digests)
                self._pinned = digests
                return await self._of_all(call)
            case ReleaseAdapter(_, digest):
                self._engines.release(digest)
                self._pinned = [pinned for pinned in self._pinned if pinned != digest]
                return await self._of_all(call)

    async def _of_one(self, call: Call, digest: str) -> Reply:
        """Have one replica answer. Where that ends it, so might it any other: none is asked again."""
        while not (ready := self._ready()):
            self._someone.clear()
            await self._someone.wait()
        try:
            return await self._on(self._choose(ready, digest), call)
        except EngineDead:
            message = "The replica that was looking at the adapter has ended; try again."
            return Reply(call.call_id, error_kind=ReplicaLost.__name__, error=message)

    async def _of_all(self, call: Call) -> Reply:
        """Have all answer, and return the first error, if any. Those that go meanwhile are told when they come back."""
        replies = await asyncio.gather(*(self._on(replica, call) for replica in self._ready()), return_exceptions=True)
        answers = [reply for reply in replies if isinstance(reply, Reply)]
        return next((reply for reply in answers if reply.error is not None), Reply(call.call_id))

    async def _on(self, replica: Replica, call: Call) -> Reply:
        reply = await replica.call(replace(call, call_id=next(self._ids)))
        if isinstance(call, ReleaseAdapter):
            replica.engine.confirm(call.digest)
        return reply

    async def _make_up(self, replica: Replica, call: Call) -> None:
        try:
            reply = await self._on(replica, call)
        except EngineDead:  # and is told when it comes back
            return
        if reply.error is not None:
            logger.warning("Replica %s has not done all that the others have: %s", replica.name, reply.error)
