"""One replica as the process that deals out sequences sees it: its connection, and what is known of its memory.

Knows the messages; does not know the other replicas, nor who has started it.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable

from ..api.engine.connection import EngineConnection, with_host_adapters
from ..api.engine.interface import Sink
from ..wire.messages import AddRequest, Call, EngineStats, Event, ModelInfo, Reply
from .affinity import ReplicaState
from .engines import Engine


class Replica:
    """A replica. Call `open` first. heard: called with it and each message. ended: once, when it is of no use any more.

    What it was given counts as on its device at once: statistics come a few times a second, and what is asked for by
    many meanwhile would go to many replicas.
    """

    def __init__(
        self, engine: Engine, heard: Callable[["Replica", Event], None], ended: Callable[["Replica"], None]
    ) -> None:
        self.engine = engine
        self.name = engine.name
        self.stats = EngineStats()
        self._tell = heard
        self._running: dict[str, frozenset[str]] = {}  # by request id, the digests of its adapters
        self._num_calls = 0  # that it has not answered
        self._held = Counter[str]()
        self._given: set[str] = set()  # digests of the sequences since the last statistics
        self._device: set[str] = set()
        self._host: frozenset[str] = frozenset()
        self._idle = asyncio.Event()
        self._idle.set()
        self._connection = EngineConnection(self._heard, self._cause, lambda: ended(self))

    @property
    def info(self) -> ModelInfo | None:
        """Return the facts of the model, or None while it loads."""
        return self._connection.info

    @property
    def ready(self) -> bool:
        """Return whether it takes sequences: its model is loaded, and its connection stands."""
        return self.info is not None and self._connection.dead is None

    @property
    def state(self) -> ReplicaState:
        return ReplicaState(self.name, len(self._running), self._device, self._host)

    async def open(self, end: socket.socket) -> None:
        await self._connection.open(end)

    def submit(self, request: AddRequest, sink: Sink) -> None:
        """Begin a sequence, of which `forget` has to be told when it has ended. Raises EngineDead."""
        self._connection.submit(request, sink)
        digests = self._running[request.request_id] = digests_of(request)
        self._idle.clear()
        self._held.update(digests)
        self._given |= digests
        self._device |= digests

    def abort(self, request_id: str) -> None:
        self._connection.abort(request_id)
        self.forget(request_id)

    def forget(self, request_id: str) -> None:
        """Take note that a sequence has ended."""
        self._held.subtract(self._running.pop(request_id, frozenset()))
        self._settle()

    async def idle(self) -> None:
        """Wait until it runs no sequence and has answered all calls: for one of these an upload may wait."""
        await self._idle.wait()

    async def call(self, command: Call) -> Reply:
        """Make a call and return its answer. Raises EngineDead."""
        self._num_calls += 1
        self._idle.clear()
        try:
            return await self._connection.call(command)
        finally:
            self._num_calls -= 1
            self._settle()

    def close(self, why: str) -> None:
        """End the connection; what runs on it fails."""
        self._connection.close(why)

    def _heard(self, event: Event) -> None:
        if isinstance(event, EngineStats):
            self._note(event)
        self._tell(self, event)

    def _note(self, event: EngineStats) -> None:
        self.stats = with_host_adapters(event, self.stats)
        self._held = +self._held
        # Those given since then may have left again, unseen; what has come to the device is in the next statistics.
        self._device = {*event.device_adapters, *self._held, *self._given}
        self._given = set()
        if not event.host_unchanged:
            self._host = frozenset(event.host_adapters)

    def _settle(self) -> None:
        if not self._running and not self._num_calls:
            self._idle.set()

    async def _cause(self) -> str:
        return f"replica {self.name} has closed its connection"


def digests_of(request: AddRequest) -> frozenset[str]:
    return frozenset(adapter.digest for adapter in request.adapters)
