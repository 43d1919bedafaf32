"""Forwarding of requests from a worker to the primary process, which alone changes adapters and sums up metrics.

Bodies and answers are streamed: an answer that is there before the body has ended is passed back then.
Knows ASGI and the primary's private socket; does not know the routes.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import h11
from fastapi import Request
from starlette.types import Receive, Scope, Send

from ..http.errors import ApiError, bad_request, unavailable
from ..http.leaving import ClientGone, until_disconnect
from ..http.protocol import CONNECTION
from .clients import with_client
from .connections import PrimaryConnection, PrimaryConnections, PrimaryGone

PRIMARY = "primary"  # the socket's name in the server's private folder
PRIVATE = "/private/"  # where paths begin that only the processes themselves ask for
_OF_ONE_CONNECTION = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"expect", b"te"}


T = TypeVar("T")


class Forwarder:
    """An ASGI application that passes every request on. folder: the private folder, which has the primary's socket."""

    def __init__(self, folder: Path) -> None:
        self._connections = PrimaryConnections(folder / PRIMARY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and its answer back, for as long as the client is there.

        Raises ApiError: 503 if the primary does not answer, 404 for what is between the processes, and what is raised
        where the body is read.
        """
        if scope["path"].startswith(PRIVATE):
            raise ApiError(404, "Not Found")
        try:
            with contextlib.suppress(ClientGone):
                await until_disconnect(scope[CONNECTION], self._pass_on(Request(scope, receive), send))
        except PrimaryGone:
            raise unavailable("The server cannot answer this now; try again soon.", "unavailable") from None

    async def _pass_on(self, request: Request, send: Send) -> None:
        async with self._connections.one() as connection:
            try:
                connection.ask(request.method, *_head(request))
            except h11.LocalProtocolError as error:
                raise bad_request(f"The request's head cannot be passed on: {error}.") from None
            body = request.stream() if _has_body(request) else None
            async with _beside(connection.send_body(body)) as sending:
                head = await _unless_it_fails(sending, connection.head())
                await _pass_back(head, connection, send)

    async def close(self) -> None:
        """Close the connections to the primary."""
        self._connections.close()


def _has_body(request: Request) -> bool:
    return "content-length" in request.headers or "transfer-encoding" in request.headers


def _head(request: Request) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return the target and the headers of a request to the primary."""
    kept = [pair for pair in request.headers.raw if pair[0] not in _OF_ONE_CONNECTION]
    if "host" not in request.headers:  # of an older client
        kept.append((b"host", PRIMARY.encode()))
    if _has_body(request) and "content-length" not in request.headers:
        kept.append((b"transfer-encoding", b"chunked"))
    query = request.scope["query_string"]
    return request.scope["raw_path"] + (b"?" + query if query else b""), with_client(kept, request.scope)


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Do work beside the block, and no longer than that."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _unless_it_fails(sending: asyncio.Task[None], head: Coroutine[Any, Any, h11.Response]) -> h11.Response:
    """Return the answer's head. Raises what `sending` raises before it is there, PrimaryGone."""
    async with _beside(head) as answer:
        await asyncio.wait({answer, sending}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done() and not answer.done():
            sending.result()
        return await answer


async def _pass_back(head: h11.Response, connection: PrimaryConnection, send: Send) -> None:
    headers = [pair for pair in head.headers.raw_items() if pair[0].lower() not in _OF_ONE_CONNECTION]
    await send({"type": "http.response.start", "status": head.status_code, "headers": headers})
    async for piece in connection.pieces():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
