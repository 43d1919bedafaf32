"""Both ends of the wire: one ZeroMQ PAIR on a Unix socket, one msgpack message a frame.

The API binds (`ApiSocket`, asyncio), the engine connects (`EngineSocket`, synchronous). Queues have no limit on either
side, so neither end ever blocks on the other: an engine that outruns a slow API fills that process's memory by what
its running sequences say, which the limit on running sequences bounds. Knows nothing of who starts whom.
"""

import asyncio
from collections import deque
from typing import Any

import msgspec
import zmq

from .messages import Command, Event

IN, OUT = int(zmq.POLLIN), int(zmq.POLLOUT)  # zmq's own are enums, slow to combine
IN_OR_OUT = IN | OUT
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
    """The API's end, for one event loop: of all that has arrived at once, one wake-up.

    The loop watches ZeroMQ's own descriptor, which tells of a change only once, whatever it is; so each time, and after
    each call that may have taken the news away, both directions are looked at until there is nothing left to do.
    """

    def __init__(self, address: str) -> None:
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._socket = _configure(self._context.socket(zmq.PAIR))
        self._socket.bind(address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)
        self._unsent: deque[bytes] = deque()  # before the engine has connected
        self._arrived: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None  # set while `receive` waits
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.FD, self._look)

    def send(self, command: Command) -> None:
        """Queues a command. Until the engine has connected it waits here, in order."""
        self._unsent.append(self._encoder.encode(command))
        self._look()

    async def receive(self) -> Event:
        """The next event. Raises msgspec.MsgspecError for what is none. For one caller at a time."""
        while not self._arrived:
            self._reader = self._loop.create_future()
            self._look()
            await self._reader
        return self._decoder.decode(self._arrived.popleft())

    def close(self) -> None:
        self._loop.remove_reader(self._socket.FD)
        self._socket.close()
        self._context.term()

    def _look(self) -> None:
        """Until ZeroMQ, whose news is taken away by asking, says that there is nothing to do."""
        while todo := self._socket.getsockopt(zmq.EVENTS) & (IN_OR_OUT if self._unsent else IN):
            if todo & OUT and _send_now(self._socket, self._unsent[0]):
                self._unsent.popleft()
            if todo & IN and (frame := _receive_now(self._socket)) is not None:
                self._arrived.append(frame)
        if self._arrived and self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


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


def _send_now(socket: Any, frame: bytes) -> bool:
    try:
        socket.send(frame, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True
