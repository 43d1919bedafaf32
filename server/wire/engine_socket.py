"""The engine's end of its connections: any number of API processes, each of which hears of its own requests only.

Connections come through the door, a socket that the parent has given the engine: each descriptor that the parent sends
there is one end of a pair, of which an API process has the other. Knows nothing of who starts whom.
"""

import logging
import select
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from .messages import (
    AbortRequest,
    AddRequest,
    Command,
    Event,
    InspectAdapter,
    LoadAdapter,
    ModelInfo,
    Outputs,
    PinAdapters,
    ReleaseAdapter,
    Reply,
    SequenceOutput,
)
from .transport import Connection, encode

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.5  # what a closing engine waits for its last message (`EngineFailed`) to leave
KNOCK = b"c"  # comes with each connection: a message of descriptors needs a byte of content
MOST_AT_ONCE = 16  # connections taken through the door with one call
RETRY_SECONDS = 0.02  # after which what memory was wanting for is tried again


@dataclass(eq=False)
class _Client:
    """One client. requests: ids of its sequences that have not ended.

    unread, unsaid: messages that came and go, for which there was no memory yet.
    """

    connection: Connection
    requests: set[str] = field(default_factory=set)
    unread: deque[memoryview] = field(default_factory=deque)
    unsaid: deque[Event] = field(default_factory=deque)


class EngineSocket:
    """All connections of the engine. Not thread-safe: the step loop's thread owns it.

    door: a descriptor, which this takes over.

    Calls (`Call`) may come from one client only; their ids would be mixed up. Where memory is wanting, messages wait in
    their order, and are tried again with each `poll`.
    """

    def __init__(self, door: int) -> None:
        self._door = socket.socket(fileno=door)
        self._door.setblocking(False)
        self._poller = select.poll()
        self._poller.register(self._door, select.POLLIN)
        self._decode = msgspec.msgpack.Decoder(Command).decode
        self._clients: dict[int, _Client] = {}  # by descriptor
        self._owners: dict[str, _Client] = {}  # by request id
        self._callers: dict[int, _Client] = {}  # by call id
        self._info: ModelInfo | None = None  # set by `send`, for clients that come later
        self._delayed: set[_Client] = set()  # whose messages wait for memory
        self._welcome()

    def poll(self, timeout: float | None = 0.0) -> list[Command]:
        """Return all commands that have arrived; wait for the first at most `timeout` seconds (None: for ever).

        Of a client that has gone, the sequences are aborted.
        """
        commands: list[Command] = []
        if self._delayed:
            timeout = RETRY_SECONDS if timeout is None else min(timeout, RETRY_SECONDS)
        delayed, self._delayed = self._delayed, set()
        for client in delayed:
            self._say(client)
            commands += self._read(client)
        for descriptor, what in self._poller.poll(None if timeout is None else timeout * 1000):
            if descriptor == self._door.fileno():
                self._welcome()
                continue
            if (there := self._clients.get(descriptor)) is None:
                continue
            client = there
            if what & select.POLLOUT:
                self._flush(client)
            if what & ~select.POLLOUT:
                commands += self._read(client)
        return commands

    def send(self, event: Event) -> None:
        """Send outputs to the clients that asked for them, replies to who called, all else to all. Never blocks."""
        match event:
            case Outputs(outputs):
                for client, own in self._by_owner(outputs).items():
                    self._send(client, Outputs(own))
            case Reply(call_id):
                if (caller := self._callers.pop(call_id, None)) is not None:
                    self._send(caller, event)
            case _:
                if isinstance(event, ModelInfo):
                    self._info = event
                self._welcome()
                for client in self._clients.values():
                    self._send(client, event)

    def close(self) -> None:
        self._door.close()
        for client in self._clients.values():
            client.connection.close(LINGER_SECONDS)

    def _welcome(self) -> None:
        """Take in all connections that wait at the door."""
        while True:
            try:
                knock, descriptors, _, _ = socket.recv_fds(self._door, MOST_AT_ONCE, MOST_AT_ONCE)
            except BlockingIOError:
                return
            if not knock:  # the parent has gone, which ends this process elsewhere
                self._poller.unregister(self._door)
                return
            for descriptor in descriptors:
                self._add(_Client(Connection(socket.socket(fileno=descriptor))))

    def _add(self, client: _Client) -> None:
        self._clients[client.connection.fileno()] = client
        self._poller.register(client.connection, select.POLLIN)
        if self._info is not None:
            self._send(client, self._info)

    def _read(self, client: _Client) -> Iterator[Command]:
        try:
            client.unread.extend(client.connection.receive())
            while client.unread:
                command = self._decode(client.unread[0])
                client.unread.popleft()
                self._note(client, command)
                yield command
        except MemoryError:
            logger.warning("there is no memory to read what has come; it is tried again")
            self._delayed.add(client)
            return
        if not client.connection.open:
            yield from self._leave(client)

    def _note(self, client: _Client, command: Command) -> None:
        match command:
            case AddRequest(request_id=request_id):
                client.requests.add(request_id)
                self._owners[request_id] = client
            case AbortRequest(request_id):
                self._forget(request_id)
            case InspectAdapter(call_id) | ReleaseAdapter(call_id) | LoadAdapter(call_id) | PinAdapters(call_id):
                self._callers[call_id] = client

    def _leave(self, client: _Client) -> Iterator[Command]:
        self._delayed.discard(client)
        self._poller.unregister(client.connection)
        del self._clients[client.connection.fileno()]
        client.connection.close(0)
        self._callers = {call_id: caller for call_id, caller in self._callers.items() if caller is not client}
        for request_id in tuple(client.requests):
            self._forget(request_id)
            yield AbortRequest(request_id)

    def _by_owner(self, outputs: list[SequenceOutput]) -> dict[_Client, list[SequenceOutput]]:
        owned: dict[_Client, list[SequenceOutput]] = {}
        owners, last, own = self._owners, None, list[SequenceOutput]()
        for output in outputs:
            owner = owners.get(output.request_id)
            if owner is None:  # it has left, and the abort is on its way
                continue
            if owner is not last:  # most steps are of one client's sequences
                last, own = owner, owned.setdefault(owner, [])
            own.append(output)
            if output.finish_reason is not None or output.error is not None:
                self._forget(output.request_id)
        return owned

    def _forget(self, request_id: str) -> None:
        if (owner := self._owners.pop(request_id, None)) is not None:
            owner.requests.discard(request_id)

    def _send(self, client: _Client, event: Event) -> None:
        client.unsaid.append(event)
        self._say(client)

    def _say(self, client: _Client) -> None:
        try:
            while client.unsaid:
                client.connection.send(encode(client.unsaid[0]))
                client.unsaid.popleft()
        except MemoryError:
            logger.warning("there is no memory to send what is new; it is tried again")
            self._delayed.add(client)
        self._watch(client)

    def _flush(self, client: _Client) -> None:
        client.connection.flush()
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        """Wake `poll` when there is room for what is unsent."""
        wanted = select.POLLIN | (select.POLLOUT if client.connection.has_unsent else 0)
        self._poller.modify(client.connection, wanted)
