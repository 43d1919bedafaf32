"""Connections to the primary process on its private socket, each for one request at a time.

A request is sent while its answer is awaited, so that a refusal arrives however long the body stalls. Knows HTTP/1.1;
knows neither ASGI nor what is asked.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path

import h11

Headers = Sequence[tuple[bytes, bytes]]

KEPT_OPEN = 20  # connections, for the next requests
LONGEST_HEAD = 1 << 20  # bytes of an answer's; the primary is ours
READ = 1 << 16


class PrimaryGone(Exception):
    """The primary process does not answer."""


class PrimaryConnection:
    """One connection. `ask`, then `send_body` beside `head` and `pieces`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEAD)

    @property
    def is_free(self) -> bool:
        """Return whether the last request and its answer are whole, and another can follow."""
        return self._http.states == {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE} and not self._reader.at_eof()

    def ask(self, method: str, target: bytes, headers: Headers) -> None:
        """Send the head of a request. Raises h11.LocalProtocolError for what cannot be passed on."""
        self._write(h11.Request(method=method, target=target, headers=list(headers)))

    async def send_body(self, body: AsyncIterable[bytes] | None) -> None:
        """Send a body, if there is one, and the request's end, as far as the primary takes them.

        Raises what `body` raises.
        """
        if body is not None:
            async for piece in body:
                try:
                    self._write(h11.Data(data=piece))
                    await self._writer.drain()
                except OSError:  # it has said why, which the reader finds
                    return
        self._write(h11.EndOfMessage())

    async def head(self) -> h11.Response:
        """Return the head of the answer, as soon as it is there. Raises PrimaryGone."""
        while not isinstance(event := await self._next(), h11.Response):
            pass
        return event

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the answer's body. Raises PrimaryGone."""
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    def begin_next(self) -> None:
        """Make ready for another request, if this one and its answer have ended."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()

    def close(self) -> None:
        self._writer.transport.abort()

    async def _next(self) -> h11.Event:
        while True:
            try:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self._reader.read(READ))
                    continue
            except (OSError, h11.RemoteProtocolError) as error:
                raise PrimaryGone from error
            if not isinstance(event, h11.Event) or isinstance(event, h11.ConnectionClosed):
                raise PrimaryGone
            return event

    def _write(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")


class PrimaryConnections:
    """As many connections as there are requests, so none waits for another's. path: of the private socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._free: list[PrimaryConnection] = []

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[PrimaryConnection]:
        """Have a connection for one request. It is kept if the answer has been read to its end. Raises PrimaryGone."""
        connection = await self._take()
        try:
            yield connection
            connection.begin_next()
        finally:
            if connection.is_free and len(self._free) < KEPT_OPEN:
                self._free.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close those that are free."""
        while self._free:
            self._free.pop().close()

    async def _take(self) -> PrimaryConnection:
        while self._free:
            connection = self._free.pop()
            if connection.is_free:
                return connection
            connection.close()
        try:
            return PrimaryConnection(*await asyncio.open_unix_connection(self._path))
        except OSError as error:
            raise PrimaryGone from error
