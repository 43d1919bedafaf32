"""One connection to one engine process, from its first message to its end: sequences, calls and what becomes of them.

Knows the messages; does not know who started the engine, nor that another may take its place.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

import msgspec

from ...wire.messages import (
    AbortRequest,
    AddRequest,
    Call,
    Command,
    EngineFailed,
    EngineStats,
    Event,
    ModelInfo,
    Outputs,
    Reply,
)
from ...wire.transport import Channel
from .interface import EngineDead, Sink

logger = logging.getLogger(__name__)

SHUTTING_DOWN = "the server is shutting down"


class EngineConnection:
    """A connection to an engine. Call `open` first, and all methods on the same event loop.

    heard: called with each message, before anything is done with it here. cause: says why the engine has closed the
    connection. ended: called once, when the connection is of no use any more.
    """

    def __init__(
        self, heard: Callable[[Event], None], cause: Callable[[], Awaitable[str]], ended: Callable[[], None]
    ) -> None:
        self.info: ModelInfo | None = None  # set by the engine's first event
        self.dead: EngineDead | None = None  # set when the engine ends, for good
        self._heard = heard
        self._cause = cause
        self._ended = ended
        self._end_task: asyncio.Task[None] | None = None  # set when the connection ends
        self._sinks: dict[str, Sink] = {}
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._loaded: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()
        # Whether or not anyone waits for the model, its failure is no unhandled exception.
        self._loaded.add_done_callback(lambda future: future.cancelled() or future.exception())
        decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
        self._channel: Channel[Command, Event] = Channel(decoder, self._receive, self._disconnected)

    @property
    def num_sequences(self) -> int:
        """Return the number of sequences that have not ended."""
        return len(self._sinks)

    async def open(self, end: socket.socket) -> None:
        """Take over a connection to the engine, whether or not its model is loaded."""
        await self._channel.open(end)

    async def loaded(self) -> ModelInfo:
        """Wait for the model. Raises EngineDead."""
        return await asyncio.shield(self._loaded)

    def close(self, why: str) -> None:
        """End the connection: open sequences and calls get EngineDead, and the engine aborts the sequences."""
        self.die(why)
        self._channel.close()

    def send(self, command: Command) -> None:
        """Send a command. Raises EngineDead."""
        if self.dead is not None:
            raise EngineDead(*self.dead.args)
        self._channel.send(command)

    def submit(self, request: AddRequest, sink: Sink) -> None:
        """Begin a sequence, whose outputs go to `sink`. Raises EngineDead."""
        self.send(request)
        self._sinks[request.request_id] = sink

    def abort(self, request_id: str) -> None:
        """End a sequence, of which its sink hears nothing more. An unknown id is ignored: it may have ended."""
        if self._sinks.pop(request_id, None) is not None and self.dead is None:
            self.send(AbortRequest(request_id))

    async def call(self, command: Call) -> Reply:
        """Make a call and return its answer. Raises EngineDead."""
        self.send(command)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._calls[command.call_id] = reply
        try:
            return await reply
        finally:
            self._calls.pop(command.call_id, None)

    def die(self, message: str) -> None:
        """End all sequences and calls with EngineDead, and take no more. Idempotent."""
        if self.dead is not None:
            return
        is_starting = not self._loaded.done()  # whoever starts it says why it failed
        if message != SHUTTING_DOWN and not is_starting:
            logger.error("The engine is gone: %s", message)
        self.dead = EngineDead(message)
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.fail(EngineDead(message))
        waiting: list[asyncio.Future[Reply] | asyncio.Future[ModelInfo]] = [*self._calls.values(), self._loaded]
        for future in waiting:
            if not future.done():
                future.set_exception(EngineDead(message))
        self._ended()

    def _receive(self, event: Event) -> None:
        if self.dead is not None:  # it still had something to say
            return
        try:
            self._heard(event)
            if self.dead is None:
                self._dispatch(event)
        except Exception as error:
            # Later outputs would be lost: an error for all sequences is better than a client that waits for ever.
            logger.exception("An engine's message could not be handled")
            self.die(f"an engine's message could not be handled: {error!r}")

    def _dispatch(self, event: Event) -> None:
        match event:
            case Outputs():
                self._deliver(event)
            case Reply():
                if (call := self._calls.get(event.call_id)) is not None and not call.done():
                    call.set_result(event)
            case ModelInfo():
                self.info = event
                if not self._loaded.done():
                    self._loaded.set_result(event)
            case EngineFailed():
                self.die(event.message)

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
            self.die(f"the engine does not speak this server's language: {fault}")
        elif self.dead is None:
            self._end_task = asyncio.create_task(self._report_end(), name="engine-end")

    async def _report_end(self) -> None:
        self.die(await self._cause())


def with_host_adapters(event: EngineStats, before: EngineStats) -> EngineStats:
    """Return statistics with the list of the host's adapters, which the engine leaves out where it is as before."""
    if not event.host_unchanged:
        return event
    return msgspec.structs.replace(event, host_adapters=before.host_adapters)
