"""Forwarding of requests from a worker to the primary process, which alone changes adapters and sums up metrics.

Bodies and answers are streamed. Knows ASGI and the primary's private socket; does not know the routes.
"""

import contextlib
from pathlib import Path

import httpx
from fastapi import Request
from starlette.types import Receive, Scope, Send

from ..http.errors import ApiError, unavailable
from ..http.leaving import ClientGone, until_disconnect
from ..http.protocol import CONNECTION
from .clients import with_client

PRIMARY = "primary"  # the socket's name in the server's private folder
PRIVATE = "/private/"  # where paths begin that only the processes themselves ask for
KEPT_OPEN = 20  # connections, for the next requests
_OF_ONE_CONNECTION = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"expect", b"te"}


class Forwarder:
    """An ASGI application that passes every request on. folder: the private folder, which has the primary's socket."""

    def __init__(self, folder: Path) -> None:
        # No limit: the requests of a slow client must not keep those of others waiting for a connection.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_OPEN)
        transport = httpx.AsyncHTTPTransport(uds=str(folder / PRIMARY), limits=limits)
        self._http = httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and its answer back, for as long as the client is there.

        Raises ApiError: 503 if the primary does not answer, 404 for what is between the processes.
        """
        if scope["path"].startswith(PRIVATE):
            raise ApiError(404, "Not Found")
        with contextlib.suppress(ClientGone):
            await until_disconnect(scope[CONNECTION], self._pass_on(scope, receive, send))

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._http.send(self._request(Request(scope, receive)), stream=True)
        except httpx.TransportError:
            raise unavailable("The server cannot answer this now; try again soon.", "unavailable") from None
        try:
            headers = [pair for pair in answer.headers.raw if pair[0].lower() not in _OF_ONE_CONNECTION]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await answer.aclose()

    async def close(self) -> None:
        """Close the connections to the primary."""
        await self._http.aclose()

    def _request(self, request: Request) -> httpx.Request:
        kept = [pair for pair in request.headers.raw if pair[0] not in _OF_ONE_CONNECTION]
        headers = with_client(kept, request.scope)
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        target = request.scope["raw_path"] + (b"?" + query if (query := request.scope["query_string"]) else b"")
        url = httpx.URL(scheme="http", host=PRIMARY, raw_path=target)
        return self._http.build_request(
            request.method, url, headers=headers, content=request.stream() if has_body else None
        )
