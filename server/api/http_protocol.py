"""uvicorn's connections, with joined writes, and with a word to who waits for the client to leave.

The word is a call: a task that waits for ASGI's message of it costs more than what it waits beside.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .joined_writes import JoinedWrites

CONNECTION = "peftserve.connection"  # in the ASGI scope: the `HttpProtocol`


class HttpProtocol(HttpToolsProtocol):
    """One connection. It answers one request at a time."""

    _leave: Callable[[], None] | None = None
    _lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, JoinedWrites(transport, self.loop)))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, object], self.scope)[CONNECTION] = self

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost = True
        if self._leave is not None:
            self._leave()

    def watch(self, leave: Callable[[], None]) -> None:
        """Call `leave` when the client leaves, at once if it has left, until `unwatch`."""
        self._leave = leave
        self.flow.resume_reading()  # a connection that is not read does not end
        if self._lost:
            leave()

    def unwatch(self) -> None:
        self._leave = None
