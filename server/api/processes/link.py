"""The primary process's link to one worker: calls and their answers, its statistics, and its end."""

import asyncio
import itertools
from collections.abc import Callable

import msgspec

from ...wire.control import Begin, Call, Done, GiveStats, Order, Stop, WorkerStats
from ...wire.transport import Channel
from .process import WorkerProcess


class WorkerGone(Exception):
    """A worker has ended before it answered."""


class WorkerLink:
    """A link to a running worker. Made by `begin`. stats: as last heard. gone: set when the connection has ended."""

    def __init__(self, process: WorkerProcess) -> None:
        self.stats = WorkerStats()
        self.gone = asyncio.Event()
        self._process = process
        self._channel: Channel[Order, Done] = Channel(msgspec.msgpack.Decoder(Done), self._hear, self._lose)
        self._calls: dict[int, asyncio.Future[Done]] = {}
        self._call_ids = itertools.count(1)

    @classmethod
    async def begin(cls, process: WorkerProcess, begin: Begin) -> "WorkerLink":
        """Link to a worker that has just been started, and send it its first message."""
        link = cls(process)
        await link._channel.open(process.control)
        link._channel.send(begin)
        return link

    async def call(self, make: Callable[[int], Call]) -> Done:
        """Make a call and return its answer. make: returns the call with an id. Raises WorkerGone."""
        if self.gone.is_set():
            raise WorkerGone
        call = make(next(self._call_ids))
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._calls[call.call_id] = answer
        try:
            self._channel.send(call)
            return await answer
        finally:
            del self._calls[call.call_id]

    async def fetch_stats(self) -> WorkerStats:
        """Ask for the statistics as they are now and return them; empty ones if the worker has ended."""
        try:
            done = await self.call(GiveStats)
        except WorkerGone:
            return WorkerStats()
        self.stats = done.stats or WorkerStats()
        return self.stats

    def tell_to_stop(self) -> None:
        """Tell the worker to end its requests with an error, and itself."""
        self._channel.send(Stop())

    async def end(self, patience: float) -> None:
        """Wait at most `patience` seconds for the process to end, then kill it; and close the link."""
        await self._process.stop(patience)
        self._channel.close()

    def _hear(self, done: Done) -> None:
        if (answer := self._calls.get(done.call_id)) is not None and not answer.done():
            answer.set_result(done)

    def _lose(self, fault: msgspec.MsgspecError | None) -> None:
        self.gone.set()
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(WorkerGone())
