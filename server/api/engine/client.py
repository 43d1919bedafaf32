"""A client of the engine: one face for whichever engine process answers now.

It submits sequences, delivers their outputs, makes calls, and reports an engine's death; another connection may take
its place then. Knows the messages; does not know who starts engines, HTTP, names of adapters, or text.
"""

import asyncio
import itertools
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Unpack

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.facts import AdapterFacts

from ...wire.faults import EngineFault, received
from ...wire.messages import (
    AdapterLevel,
    AddRequest,
    Call,
    EngineStats,
    Event,
    InspectAdapter,
    LoadAdapter,
    ModelInfo,
    PinAdapters,
    Pooling,
    ReleaseAdapter,
    Reply,
    WeightedAdapter,
)
from .connection import SHUTTING_DOWN, EngineConnection, with_host_adapters
from .interface import MEAN, Asked, EngineDead, Sink, StatsListener
from .pulse import LOOK_SECONDS, Pulse, Vitals
from .vectors import embed
from .vitals import vitals_of


class EngineClient:
    """A client on one connection to an engine at a time. All methods are for the same event loop."""

    def __init__(self) -> None:
        self.stats = EngineStats()
        self.restarts = 0  # counted by who starts engines
        self._connection: EngineConnection | None = None  # set by attach()
        self._first: ModelInfo | None = None  # set by the first engine that loads its model
        self._pulse = Pulse()
        self._out_since: float | None = time.monotonic()  # of time.monotonic(); None while a model answers
        self._looking: asyncio.Task[None] | None = None  # set by attach()
        self._has_model = asyncio.Event()
        self._call_ids = itertools.count(1)
        self._listeners: list[StatsListener] = []

    @property
    def info(self) -> ModelInfo | None:
        """Return the facts of the model, or None while it loads."""
        return None if self._connection is None else self._connection.info

    @property
    def alive(self) -> bool:
        """Return whether the connection stands, whether or not the model is loaded."""
        return self._connection is not None and self._connection.dead is None

    @property
    def silence(self) -> float:
        """Return the seconds without a sign of life; of an engine that has ended, those since then."""
        if self._out_since is not None and self._is_out():
            return time.monotonic() - self._out_since
        return self._pulse.silence

    @property
    def stats_age(self) -> float:
        """Return the seconds since a message said what the statistics are, or that they are as before."""
        return self._pulse.age

    @property
    def num_sequences(self) -> int:
        """Return the number of sequences that have not ended."""
        return 0 if self._connection is None else self._connection.num_sequences

    def add_stats_listener(self, listener: StatsListener) -> None:
        """Call `listener` with every `EngineStats` from now on."""
        self._listeners.append(listener)

    async def attach(self, end: socket.socket) -> None:
        """Take over a connection to an engine, whether or not its model is loaded, in place of the one before."""
        if self._connection is not None:
            self._connection.close("another engine has taken its place")
        connection = EngineConnection(self._heard, self._cause_of_end, self._ended)
        self._connection = connection
        self._pulse.begin()
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_for_ever(), name="engine-pulse")
        await connection.open(end)

    async def loaded(self) -> ModelInfo:
        """Wait for the model of the engine of now. Raises EngineDead."""
        return await self._now().loaded()

    async def has_model(self) -> None:
        """Wait until an engine has loaded its model, however many fail before it."""
        await self._has_model.wait()

    def leave(self) -> None:
        """End the connection: open sequences and calls get EngineDead, and the engine aborts the sequences."""
        if self._looking is not None:
            self._looking.cancel()
        if self._connection is not None:
            self._connection.close(SHUTTING_DOWN)

    def submit(self, request: AddRequest, sink: Sink) -> None:
        """Begin a sequence, whose outputs go to `sink`. Raises EngineDead."""
        self._now().submit(request, sink)

    def abort(self, request_id: str) -> None:
        """End a sequence, of which its sink hears nothing more. An unknown id is ignored: it may have ended."""
        if self._connection is not None:
            self._connection.abort(request_id)

    async def inspect_adapter(self, digest: str, path: Path, tenant: str = "") -> AdapterFacts:
        """Return the facts of an adapter's files in the folder `path`. Raises AdapterError, EngineFault, EngineDead."""
        reply = await self._call(InspectAdapter(next(self._call_ids), digest, str(path), tenant))
        if reply.facts is None:
            raise _error(reply)
        return reply.facts

    async def release_adapter(self, digest: str) -> None:
        """Return when the adapter has left the device and the host. Raises AdapterError, EngineFault, EngineDead."""
        reply = await self._call(ReleaseAdapter(next(self._call_ids), digest))
        if reply.error is not None:
            raise _error(reply)

    async def load_adapter(self, digest: str) -> AdapterLevel:
        """Bring an adapter to the device. Returns where it is then. Raises AdapterError, EngineFault, EngineDead."""
        reply = await self._call(LoadAdapter(next(self._call_ids), digest))
        if reply.level is None:
            raise _error(reply)
        return reply.level

    async def pin_adapters(self, digests: Iterable[str]) -> None:
        """Keep these adapters, and no others, on the device. Raises AdapterError, EngineFault, EngineDead."""
        reply = await self._call(PinAdapters(next(self._call_ids), list(digests)))
        if reply.error is not None:
            raise _error(reply)

    async def embed(
        self,
        prompt: Sequence[int],
        pooling: Pooling = MEAN,
        adapters: Sequence[WeightedAdapter] = (),
        salt: str = "",
        **asked: Unpack[Asked],
    ) -> list[float]:
        """Return one vector for a prompt of token ids. Raises ValueError, AdapterError, EngineDead."""
        return await embed(self, prompt, pooling, adapters, salt, **asked)

    async def _cause_of_end(self) -> str:
        """Return why the connection has ended."""
        return "the engine has closed its connection"

    async def _call(self, command: Call) -> Reply:
        return await self._now().call(command)

    def _now(self) -> EngineConnection:
        if self._connection is None:
            raise EngineDead("the engine is not running")
        return self._connection

    def _heard(self, event: Event) -> None:
        self._pulse.heard()
        match event:
            case EngineStats():
                self.stats = with_host_adapters(event, self.stats)
                for listener in self._listeners:
                    listener(self.stats)
            case ModelInfo():
                self._take(event)

    def _take(self, info: ModelInfo) -> None:
        """Take a model in, unless it is another than before: adapters, and texts under way, are of that one."""
        self._first = self._first or info
        if identity_of(info) != identity_of(self._first):
            self._now().die("the model is another than before; restart the server to serve it")
            return
        self._out_since = None
        self._has_model.set()

    def _ended(self) -> None:
        """Count the time from its last sign of life on, and forget what the engine has said of itself."""
        self._has_model.clear()
        if self._out_since is None:
            self._out_since = time.monotonic() - self._pulse.silence
        self.stats = EngineStats()

    def _is_out(self) -> bool:
        """Return whether no engine is there, or none that is expected to answer."""
        return not self.alive

    async def _look_for_ever(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        """Look for signs of life. A process that loads is not judged unless the system says something of it."""
        vitals, loading = self._vitals(), self.info is None
        if self.alive and not (loading and vitals is None):
            self._pulse.look(vitals, works=loading or self._computes_here())

    def _vitals(self) -> Vitals | None:
        return None if self.info is None else vitals_of(self.info.pid)

    def _computes_here(self) -> bool:
        """Return whether the processor computes the steps. While a GPU does, it takes time as well, but to wait."""
        return self.info is not None and self.info.device == "cpu"


def identity_of(info: ModelInfo) -> tuple[object, ...]:
    """Return what two engines have alike that serve one model in the same words."""
    words = (info.tokenizer, info.chat_template, info.special_tokens, info.eos_token_ids)
    return (info.fingerprint, info.architecture, info.dtype, info.vocab_size, info.hidden_size, *words)


def _error(reply: Reply) -> AdapterError | EngineFault:
    return received(reply.error_kind, reply.error or "the adapter was refused", reply.error_param)
