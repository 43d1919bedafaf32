"""One file over HTTP: streamed, begun again where a connection breaks, and led by redirects where they are allowed.

Knows HTTP and nothing of adapters. A route, which its caller gives, says for each address where to connect.
"""

import asyncio
import ssl
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx

from .place import SourceFailed, SourceMissing

TRIES = 4
FIRST_PAUSE = 0.25  # seconds before the second try; twice as long before each further one
MAX_REDIRECTS = 5
TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # seconds: for each read, and to connect
_FAILED_FOR_NOW = frozenset({408, 425, 429, *range(500, 600)})


@dataclass(frozen=True)
class Hop:
    """A way to ask for an address: where to connect, what to send beside, and httpx's extensions."""

    url: httpx.URL
    headers: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, Any] = field(default_factory=dict)


Route = Callable[[httpx.URL, httpx.URL | None], Awaitable[Sequence[Hop]]]
"""Return the ways to an address, best first, given the address that has led there. Raises SourceFailed."""


@cache
def tls_context() -> ssl.SSLContext:
    """Return the certificates that servers are checked by: of SSL_CERT_FILE, else those of the package. Read once."""
    return httpx.create_ssl_context()


class _Again(Exception):
    """The server cannot answer now."""


class Download:
    """The download of one file. tag: what the server says its content is known by, once something has been read."""

    def __init__(self, client: httpx.AsyncClient, url: httpx.URL, route: Route) -> None:
        self.tag: str | None = None
        self._client = client
        self._url = url
        self._route = route
        self._count = 0
        self._sum = 0

    async def read(self) -> AsyncGenerator[bytes]:
        """Read the file. Raises SourceMissing, SourceFailed."""
        for attempt in range(TRIES):
            try:
                async with self._answer() as answer, aclosing(self._new(answer)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            except (_Again, httpx.TransportError):
                if attempt + 1 == TRIES:
                    raise SourceFailed(f"The host {self._url.host!r} cannot be reached, or does not answer.") from None
            await asyncio.sleep(FIRST_PAUSE * 2**attempt)

    async def _new(self, answer: httpx.Response) -> AsyncGenerator[bytes]:
        """Yield what was not read before. A server that cannot continue begins again: the same bytes are dropped."""
        again = 0 if answer.status_code == 206 else self._count
        sum_again = 0
        async for piece in answer.aiter_raw():
            known, new = piece[:again], piece[again:]
            again -= len(known)
            sum_again = zlib.crc32(known, sum_again)
            if known and not again and sum_again != self._sum:
                raise self._changed()
            if new:
                self._count += len(new)
                self._sum = zlib.crc32(new, self._sum)
                yield new
        if again:
            raise self._changed()

    @asynccontextmanager
    async def _answer(self) -> AsyncGenerator[httpx.Response]:
        """Ask, follow redirects, and look at the status. Raises _Again, SourceFailed, httpx.TransportError."""
        url, before = self._url, None
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._send(await self._route(url, before))
            try:
                if not response.has_redirect_location:
                    self._check(response)
                    yield response
                    return
                before, url = url, url.join(response.headers["location"])
            finally:
                await response.aclose()
        raise SourceFailed("The source has too many redirects.")

    async def _send(self, hops: Sequence[Hop]) -> httpx.Response:
        headers = {"accept-encoding": "identity"}
        if self._count and self.tag is not None:
            headers |= {"range": f"bytes={self._count}-", "if-range": self.tag}
        for i, hop in enumerate(hops):
            request = self._client.build_request("GET", hop.url, headers={**headers, **hop.headers})
            request.extensions = {**request.extensions, **hop.extensions}
            try:
                return await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if i + 1 == len(hops):
                    raise
        raise SourceFailed(f"The host {self._url.host!r} has no address.")

    def _check(self, response: httpx.Response) -> None:
        status, name = response.status_code, self._url.path.rpartition("/")[2]
        if status in _FAILED_FOR_NOW:
            raise _Again
        if status in (404, 410):
            raise SourceMissing(f"The source holds no {name}.")
        if status in (401, 403):
            raise SourceFailed(f"The source does not let this server read {name} (status {status}).")
        if status not in (200, 206):
            raise SourceFailed(f"The source answers for {name} with the status {status}.")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise SourceFailed(f"The source sends {name} compressed, although that was not asked for.")
        if status == 206 and not response.headers.get("content-range", "").startswith(f"bytes {self._count}-"):
            raise self._changed()
        tag = response.headers.get("etag")
        self.tag = tag if tag is not None and not tag.startswith("W/") else None

    def _changed(self) -> SourceFailed:
        return SourceFailed(f"{self._url.path.rpartition('/')[2]} has changed while it was fetched; try again.")
