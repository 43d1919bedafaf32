"""Connections between two of our processes: msgpack messages over a Unix stream socket.

`Channel` is an event loop's end, `Connection` that of a thread that polls. Neither ever blocks on the other: what does
not fit into the socket waits in memory. The memory of an engine that outruns a slow API is bounded by its limit on
running sequences. Sockets come in pairs without a name, so that nobody else can connect. Knows of the messages only
how they are coded.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from .framing import Unframer, framed

READ_SIZE = 1 << 18

Out = TypeVar("Out")
In = TypeVar("In")

_encode = msgspec.msgpack.Encoder().encode


def encode(message: Any) -> bytes:
    """Return a message as it is sent: its length and its msgpack."""
    return framed(_encode(message))


class Channel(asyncio.Protocol, Generic[Out, In]):
    """An event loop's end of a connection.

    The loop takes a turn or two to open it. What is sent until then is kept, and goes first: nobody would ever answer
    what was dropped.

    deliver: called with each message that comes. ended: once, when the connection has closed, with what was wrong with
    the other end's last message, if anything was.
    """

    def __init__(
        self,
        decoder: "msgspec.msgpack.Decoder[In]",
        deliver: Callable[[In], None],
        ended: Callable[[msgspec.MsgspecError | None], None],
    ) -> None:
        self._decode = decoder.decode
        self._deliver = deliver
        self._ended = ended
        self._unframer = Unframer()
        self._fault: msgspec.MsgspecError | None = None
        self._transport: asyncio.Transport | None = None  # set when the event loop has taken the socket
        self._kept: list[bytes] = []  # sent before that
        self._is_closed = False  # set by close(), which may come before that

    async def open(self, end: socket.socket) -> None:
        """Take a connected socket over."""
        end.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self, sock=end)

    def send(self, message: Out) -> None:
        """Send a message, at the latest when the connection opens; to a closed connection, nothing happens."""
        if self._is_closed:
            return
        if self._transport is None:
            self._kept.append(encode(message))
        elif not self._transport.is_closing():
            self._transport.write(encode(message))

    def close(self) -> None:
        """Close the connection behind what was sent before, at the latest when it opens."""
        self._is_closed = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        for data in self._kept:
            self._transport.write(data)
        self._kept.clear()
        if self._is_closed:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        for message in self._unframer.push(data):
            try:
                decoded = self._decode(message)
            except msgspec.MsgspecError as fault:
                self._fault = fault
                self.close()
                return
            self._deliver(decoded)

    def connection_lost(self, error: Exception | None) -> None:
        self._ended(self._fault)


class Connection:
    """A polling thread's end of a connection. Nothing here waits but `close`.

    Where there is no memory, nothing is lost: what was raised as MemoryError can be tried again.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._unframer = Unframer()
        self._held: bytes | None = None  # arrived, and not yet cut into messages for want of memory
        self._unsent: deque[memoryview] = deque()
        self.open = True  # False when the other end has gone

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> list[memoryview]:
        """Return all messages that have arrived. Raises MemoryError."""
        messages: list[memoryview] = []
        while self.open:
            data = self._held if self._held is not None else self._recv()
            if data is None:
                break
            try:
                self._held = data
                messages += self._unframer.push(data)
                self._held = None
            except MemoryError:
                if not messages:
                    raise
                break
            self.open = bool(data)
            if len(data) < READ_SIZE:
                break
        return messages

    def send(self, data: bytes) -> None:
        """Send what `encode` made; to an end that has gone, nothing happens."""
        view = memoryview(data)
        if self._unsent:
            self._unsent.append(view)
        elif (sent := self._try_to_send(view)) < len(view):
            self._unsent.append(view[sent:])

    def flush(self) -> None:
        """Send as much as fits now of what did not fit before."""
        while self._unsent:
            view = self._unsent[0]
            if (sent := self._try_to_send(view)) < len(view):
                self._unsent[0] = view[sent:]
                return
            self._unsent.popleft()

    def close(self, patience: float) -> None:
        """Wait for at most `patience` seconds for what is still to be sent, and close."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(patience)
            for view in self._unsent:
                self._socket.sendall(view)
        self._socket.close()

    def _recv(self) -> bytes | None:
        """Return what has arrived; nothing but b"" when the other end has gone, None while there is nothing."""
        try:
            return self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _try_to_send(self, data: memoryview) -> int:
        """Return the number of bytes that are sent, or lost with the other end."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)
