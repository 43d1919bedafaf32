"""Calls about adapters, which one replica answers, or all of them together.

Every replica has the same base and the same files, so one inspects for all and the others would say the same. A call
that one must answer waits for one to be there; what all must do, those that come later have done by their start.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from ..api.engine.interface import EngineDead
from ..wire.faults import ReplicaLost
from ..wire.messages import Call, InspectAdapter, LoadAdapter, PinAdapters, ReleaseAdapter, Reply
from .replica import Replica

logger = logging.getLogger(__name__)


class Calls:
    """The calls that have not been answered.

    ready: returns the replicas that take calls. choose: returns one of these for an adapter's digest.
    """

    def __init__(
        self, ready: Callable[[], Sequence[Replica]], choose: Callable[[Sequence[Replica], str], Replica]
    ) -> None:
        self._ready = ready
        self._choose = choose
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
        """Tell a replica that has just become ready what all have been told, and have it answer who waits."""
        self._someone.set()
        if self._pinned:
            self._keep(asyncio.create_task(self._pin(replica), name="pin"))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _made(self, call: Call) -> Reply:
        match call:
            case InspectAdapter(_, digest) | LoadAdapter(_, digest):
                return await self._of_one(call, digest)
            case PinAdapters(_, digests):
                self._pinned = digests
                return await self._of_all(call)
            case ReleaseAdapter():
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
        """Have all answer, and return the first error, if any. Those that go meanwhile have nothing in memory."""
        replies = await asyncio.gather(*(self._on(replica, call) for replica in self._ready()), return_exceptions=True)
        answers = [reply for reply in replies if isinstance(reply, Reply)]
        return next((reply for reply in answers if reply.error is not None), Reply(call.call_id))

    async def _on(self, replica: Replica, call: Call) -> Reply:
        return await replica.call(replace(call, call_id=next(self._ids)))

    async def _pin(self, replica: Replica) -> None:
        try:
            reply = await self._on(replica, PinAdapters(0, self._pinned))
        except EngineDead:
            return
        if reply.error is not None:
            logger.warning("Not all pinned adapters stay on the device of %s: %s", replica.name, reply.error)
