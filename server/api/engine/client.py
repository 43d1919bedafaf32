"""A client of the engine: it submits sequences, delivers their outputs, makes calls, and reports the engine's death.

Knows the messages; does not know who started the engine, HTTP, names of adapters, or text.
"""

import asyncio
import itertools
import logging
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from peftserve.adapters.errors import AdapterError, error_of
from peftserve.adapters.facts import AdapterFacts

from ...wire.messages import (
    AbortRequest,
    AdapterLevel,
    AddRequest,
    Call,
    Command,
    EngineFailed,
    EngineStats,
    Event,
    InspectAdapter,
    LoadAdapter,
    ModelInfo,
    Outputs,
    PinAdapters,
    Pooling,
    ReleaseAdapter,
    Reply,
    WeightedAdapter,
)
from ...wire.transport import Channel
from .interface import MEAN, EngineDead, Sink, StatsListener
from .vectors import embed

logger = logging.getLogger(__name__)

SHUTTING_DOWN = "the server is shutting down"


class EngineClient:
    """A client on one connection to an engine. Call `attach` first, and all methods on the same event loop."""

    def __init__(self) -> None:
        self.info: ModelInfo | None = None  # set by the engine's first event
        self.stats = EngineStats()
        self._channel: Channel[Command, Event] | None = None  # set by attach()
        self._loaded: asyncio.Future[ModelInfo] | None = None  # set by attach()
        self._dead: EngineDead | None = None  # set when the engine ends, for good
        self._end_task: asyncio.Task[None] | None = None  # set when the connection ends
        self._sinks: dict[str, Sink] = {}
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._call_ids = itertools.count(1)
        self._listeners: list[StatsListener] = []

    @property
    def alive(self) -> bool:
        """Return whether the connection stands, whether or not the model is loaded."""
        return self._channel is not None and self._dead is None

    @property
    def num_sequences(self) -> int:
        """Return the number of sequences that have not ended."""
        return len(self._sinks)

    def add_stats_listener(self, listener: StatsListener) -> None:
        """Call `listener` with every `EngineStats` from now on."""
        self._listeners.append(listener)

    async def attach(self, connection: socket.socket) -> None:
        """Take over a connection to the engine, whether or not its model is loaded."""
        self._loaded = asyncio.get_running_loop().create_future()
        # Whether or not anyone waits for the model, its failure is no unhandled exception.
        self._loaded.add_done_callback(lambda future: future.exception())
        decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
        self._channel = Channel(decoder, self._receive, self._disconnected)
        await self._channel.open(connection)

    async def loaded(self) -> ModelInfo:
        """Wait for the model. Raises EngineDead."""
        assert self._loaded is not None
        return await asyncio.shield(self._loaded)

    def leave(self) -> None:
        """End the connection: open sequences and calls get EngineDead, and the engine aborts the sequences."""
        self._die(SHUTTING_DOWN)
        if self._channel is not None:
            self._channel.close()

    def submit(self, request: AddRequest, sink: Sink) -> None:
        """Begin a sequence, whose outputs go to `sink`. Raises EngineDead."""
        self._send(request)
        self._sinks[request.request_id] = sink

    def abort(self, request_id: str) -> None:
        """End a sequence, of which its sink hears nothing more. An unknown id is ignored: it may have ended."""
        if self._sinks.pop(request_id, None) is not None and self.alive:
            self._send(AbortRequest(request_id))

    async def inspect_adapter(self, digest: str, path: Path) -> AdapterFacts:
        """Return the facts of an adapter's files in the folder `path`. Raises AdapterError, EngineDead."""
        reply = await self._call(InspectAdapter(next(self._call_ids), digest, str(path)))
        if reply.facts is None:
            raise _adapter_error(reply)
        return reply.facts

    async def release_adapter(self, digest: str) -> None:
        """Return when the adapter has left the device and the host. Raises AdapterError, EngineDead."""
        reply = await self._call(ReleaseAdapter(next(self._call_ids), digest))
        if reply.error is not None:
            raise _adapter_error(reply)

    async def load_adapter(self, digest: str) -> AdapterLevel:
        """Bring an adapter to the device. Returns where it is then. Raises AdapterError, EngineDead."""
        reply = await self._call(LoadAdapter(next(self._call_ids), digest))
        if reply.level is None:
            raise _adapter_error(reply)
        return reply.level

    async def pin_adapters(self, digests: Iterable[str]) -> None:
        """Keep these adapters, and no others, on the device. Raises AdapterError, EngineDead."""
        reply = await self._call(PinAdapters(next(self._call_ids), list(digests)))
        if reply.error is not None:
            raise _adapter_error(reply)

    async def embed(
        self,
        prompt: Sequence[int],
        pooling: Pooling = MEAN,
        adapters: Sequence[WeightedAdapter] = (),
        salt: str = "",
    ) -> list[float]:
        """Return one vector for a prompt of token ids. Raises ValueError, AdapterError, EngineDead."""
        return await embed(self, prompt, pooling, adapters, salt)

    async def _cause_of_end(self) -> str:
        """Return why the connection has ended."""
        return "the engine has closed its connection"

    def _send(self, command: Command) -> None:
        if self._channel is None or self._dead is not None:
            raise EngineDead(*(self._dead.args if self._dead else ("the engine is not running",)))
        self._channel.send(command)

    async def _call(self, command: Call) -> Reply:
        self._send(command)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._calls[command.call_id] = reply
        try:
            return await reply
        finally:
            self._calls.pop(command.call_id, None)

    def _receive(self, event: Event) -> None:
        try:
            self._dispatch(event)
        except Exception as error:
            # Later outputs would be lost: an error for all sequences is better than a client that waits for ever.
            logger.exception("An engine's message could not be handled")
            self._die(f"an engine's message could not be handled: {error!r}")

    def _dispatch(self, event: Event) -> None:
        match event:
            case Outputs():
                self._deliver(event)
            case EngineStats():
                if event.host_unchanged:
                    event = msgspec.structs.replace(event, host_adapters=self.stats.host_adapters)
                self.stats = event
                for listener in self._listeners:
                    listener(event)
            case Reply():
                if (call := self._calls.get(event.call_id)) is not None and not call.done():
                    call.set_result(event)
            case ModelInfo():
                self.info = event
                assert self._loaded is not None
                if not self._loaded.done():
                    self._loaded.set_result(event)
            case EngineFailed():
                self._die(event.message)

    def _deliver(self, event: Outputs) -> None:
        for output in event.outputs:
            sink = self._sinks.get(output.request_id)
            if sink is None:
                continue
            if output.finish_reason is not None or output.error is not None:
                del self._sinks[output.request_id]
            sink.push(output)

    def _disconnected(self, fault: msgspec.MsgspecError | None) -> None:
        if fault is not None:
            self._die(f"the engine does not speak this server's language: {fault}")
        elif self._dead is None:
            self._end_task = asyncio.create_task(self._report_end(), name="engine-end")

    async def _report_end(self) -> None:
        self._die(await self._cause_of_end())

    def _die(self, message: str) -> None:
        if self._dead is not None:
            return
        if message != SHUTTING_DOWN:
            logger.error("The engine is gone: %s", message)
        self._dead = EngineDead(message)
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.fail(EngineDead(message))
        waiting: list[asyncio.Future[Reply] | asyncio.Future[ModelInfo]] = [*self._calls.values()]
        if self._loaded is not None:
            waiting.append(self._loaded)
        for future in waiting:
            if not future.done():
                future.set_exception(EngineDead(message))


def _adapter_error(reply: Reply) -> AdapterError:
    return error_of(reply.error_kind, reply.error or "the adapter was refused", reply.error_param)
