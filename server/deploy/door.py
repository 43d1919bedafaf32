"""The API processes' connections to the process that deals out sequences, which is an engine to them.

As in `server/wire/engine_socket.py`, connections come through the door, a socket that the parent has given. Knows the
messages; does not know what becomes of them.
"""

import asyncio
import socket
from collections.abc import Callable

import msgspec

from ..wire.engine_socket import MOST_AT_ONCE
from ..wire.messages import Command, Event, ModelInfo, Outputs, SequenceOutput
from ..wire.transport import Channel


class Client:
    """One API process. handle: called with each command that comes. ended: once, when it has gone."""

    def __init__(self, handle: Callable[["Client", Command], None], ended: Callable[["Client"], None]) -> None:
        decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
        self._channel: Channel[Event, Command] = Channel(
            decoder, lambda command: handle(self, command), lambda _: ended(self)
        )
        self._unsaid: list[SequenceOutput] = []

    async def open(self, end: socket.socket) -> None:
        await self._channel.open(end)

    def send(self, event: Event) -> None:
        self._channel.send(event)

    def tell(self, output: SequenceOutput) -> None:
        """Send an output, with all others of this turn of the event loop: those of one step are one message again."""
        if not self._unsaid:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsaid.append(output)

    def close(self) -> None:
        self._channel.close()

    def _flush(self) -> None:
        outputs, self._unsaid = self._unsaid, []
        self.send(Outputs(outputs))


class Door:
    """All API processes that are connected. handle: called with each command, and with who sent it.

    left: called with each client that has gone.
    """

    def __init__(self, handle: Callable[[Client, Command], None], left: Callable[[Client], None]) -> None:
        self.clients: set[Client] = set()
        self._handle = handle
        self._left = left
        self._info: ModelInfo | None = None  # set by `send`, for clients that come later
        self._opening: set[asyncio.Task[None]] = set()

    def open(self, door: socket.socket) -> None:
        """Take in who comes through the door from now on."""
        door.setblocking(False)
        asyncio.get_running_loop().add_reader(door, self._welcome, door)

    def send(self, event: Event) -> None:
        """Send an event to all, and facts of the model also to those who come later."""
        if isinstance(event, ModelInfo):
            self._info = event
        for client in self.clients:
            client.send(event)

    def close(self) -> None:
        for client in tuple(self.clients):
            client.close()

    def _welcome(self, door: socket.socket) -> None:
        try:
            knock, descriptors, _, _ = socket.recv_fds(door, MOST_AT_ONCE, MOST_AT_ONCE)
        except BlockingIOError:
            return
        if not knock:  # the parent has gone, which ends this process elsewhere
            asyncio.get_running_loop().remove_reader(door)
        for descriptor in descriptors:
            task = asyncio.create_task(self._add(socket.socket(fileno=descriptor)), name="client")
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _add(self, end: socket.socket) -> None:
        client = Client(self._handle, self._gone)
        if self._info is not None:
            client.send(self._info)
        self.clients.add(client)
        await client.open(end)

    def _gone(self, client: Client) -> None:
        self.clients.discard(client)
        self._left(client)
