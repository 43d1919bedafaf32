"""Searches for adapters that a worker's requests name: the primary process, which registers them, makes all of them.

The question goes over the private socket, on a path that the public port answers as any unknown one.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import httpx
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..http.errors import ApiError, ErrorEnvelope, error_response, unavailable
from .connections import KEPT_OPEN
from .forwarding import PRIMARY, PRIVATE

PATH = PRIVATE + "searches/{name:path}"


class Finder(Protocol):
    """What looks for adapters that are not registered."""

    async def find(self, name: str) -> bool:
        """Return whether an adapter was found, and is registered now. Raises ApiError, AdapterError."""

    async def close(self) -> None: ...


class RemoteFinder:
    """A finder that asks the primary process. folder: the private folder, which has the primary's socket."""

    def __init__(self, folder: Path) -> None:
        # No limit: a search that takes long must not keep others waiting for a connection.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=KEPT_OPEN)
        transport = httpx.AsyncHTTPTransport(uds=str(folder / PRIMARY), limits=limits)
        self._http = httpx.AsyncClient(transport=transport, timeout=None, trust_env=False, base_url=f"http://{PRIMARY}")

    async def find(self, name: str) -> bool:
        """Return whether an adapter was found, and is registered now. Raises ApiError."""
        try:
            answer = await self._http.post(f"{PRIVATE}searches/{quote(name, safe='')}")
        except httpx.TransportError:
            raise unavailable("The server cannot answer this now; try again soon.", "unavailable") from None
        if answer.status_code in (200, 204):
            return answer.status_code == 200
        try:
            error = msgspec.json.decode(answer.content, type=ErrorEnvelope).error
        except msgspec.MsgspecError:
            raise unavailable("The server cannot answer this now; try again soon.", "unavailable") from None
        headers = {"Retry-After": retry} if (retry := answer.headers.get("retry-after")) else None
        raise ApiError(answer.status_code, error.message, param=error.param, code=error.code, headers=headers)

    async def close(self) -> None:
        """Close the connections to the primary."""
        await self._http.aclose()


def search_endpoint(finder: Finder) -> Callable[[Request], Awaitable[Response]]:
    """Return the primary's answer to a question: 200 if the adapter is registered now, 204 if there is none."""

    async def answer(request: Request) -> Response:
        server = request.scope.get("server")
        if server is None or server[1] is not None:  # has come through the port
            return error_response(ApiError(404, "Not Found"))
        found = await finder.find(request.path_params["name"])
        return Response(status_code=200 if found else 204)

    return answer
