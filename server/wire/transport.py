"""Both ends of the wire: one ZeroMQ PAIR on a Unix socket, one msgpack message a frame.

The API binds (`ApiSocket`, asyncio), the engine connects (`EngineSocket`, synchronous). Queues have no limit on either
side, so neither end ever blocks on the other: an engine that outruns a slow API fills that process's memory by what
its running sequences say, which the limit on running sequences bounds. Knows nothing of who starts whom.
"""

import asyncio
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from .messages import Command, Event

LINGER_MS = 500  # what a closing end waits for its last message (`EngineFailed`, `Shutdown`) to leave


class EngineSocket:
    """The engine's end. Not thread-safe: the step loop's thread owns it.

    `socket` may be registered in a `zmq.Poller` beside other descriptors; it is level-triggered there.
    """

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self.socket = _configure(self._context.socket(zmq.PAIR))
        self.socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)

    def poll(self, timeout: float | None = 0.0) -> list[Command]:
        """All commands that have arrived, in order; waits for the first at most `timeout` seconds (None: for ever)."""
        if not self.socket.poll(None if timeout is None else round(timeout * 1000)):
            return []
        commands: list[Command] = []
        while (frame := _receive_now(self.socket)) is not None:
            commands.append(self._decoder.decode(frame))
        return commands

    def send(self, event: Event) -> None:
        """Never blocks while the API is connected or yet to answer the connection."""
        self.socket.send(self._encoder.encode(event), zmq.NOBLOCK)

    def close(self) -> None:
        self.socket.close()
        self._context.term()


class ApiSocket:
    """The API's end, for one event loop."""

    def __init__(self, address: str) -> None:
        self._context = zmq.asyncio.Context(io_threads=1)
        self._socket = _configure(self._context.socket(zmq.PAIR))
        self._socket.bind(address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
        self._unsent: set[asyncio.Future[Any]] = set()

    def send(self, command: Command) -> None:
        """Queues a command. Until the engine has connected it waits here, in order."""
        sent = asyncio.ensure_future(self._socket.send(self._encoder.encode(command)))
        if not sent.done():
            self._unsent.add(sent)
            sent.add_done_callback(self._unsent.discard)

    async def receive(self) -> Event:
        frame: bytes = await self._socket.recv()
        return self._decoder.decode(frame)

    def close(self) -> None:
        for sent in self._unsent:
            sent.cancel()
        self._socket.close()
        self._context.term()


def _configure(socket: Any) -> Any:
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    return socket


def _receive_now(socket: Any) -> bytes | None:
    try:
        frame: bytes = socket.recv(zmq.NOBLOCK)
    except zmq.Again:
        return None
    return frame
