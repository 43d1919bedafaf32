"""gzip for large answers of text, where the client takes it. Streams of events go out as they are, and so do files
that do not get smaller.

Instead of Starlette's middleware, which takes `gzip;q=0` for a wish, keeps strong tags on what it has changed, and
compresses an adapter's weights.
"""

import asyncio
import zlib
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .accepted import qualities

TYPES = frozenset(
    [
        *("application/json", "application/openmetrics-text", "application/javascript", "application/manifest+json"),
        *("image/svg+xml", "text/plain", "text/html", "text/css", "text/javascript", "text/markdown"),
    ]
)
SMALLEST = 2048  # bytes of a body that are worth it: fewer fit in one or two packets
LEVEL = 5  # a quarter of the time of 9, for some per cent of the size
ON_LOOP = 32 << 10  # bytes, which take less than a millisecond; more go to a thread
_GZIP = 16 + zlib.MAX_WBITS


class Compression:
    """A middleware that compresses large answers for clients that take gzip."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, _Answer(scope, send))


def takes_gzip(accepted: Iterable[str]) -> bool:
    """Return whether a request's Accept-Encoding allows gzip: by its name or by `*`, and not with a quality of 0."""
    found = qualities(accepted)
    return found.get("gzip", found.get("x-gzip", found.get("*", 0.0))) > 0


class _Answer:
    """The messages of one answer on their way out: held until the first piece of the body tells its size."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._start: Message | None = None  # held back
        self._compressor: Any = None  # of zlib, whose type has no public name

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_text(message):
            self._start = message
        elif self._start is not None and message["type"] == "http.response.body":
            await self._begin(self._start, message)
        elif self._compressor is not None and message["type"] == "http.response.body":
            await self._send({**message, "body": await self._compress(message)})
        else:
            await self._send(message)

    async def _begin(self, start: Message, first: Message) -> None:
        self._start = None
        body, more = first.get("body", b""), first.get("more_body", False)
        headers = MutableHeaders(raw=[*start["headers"]])
        if not more and len(body) < SMALLEST:
            await self._send(start)
            await self._send(first)
            return
        headers.add_vary_header("Accept-Encoding")
        if self._is_wanted():
            self._compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)
            body = await self._compress(first)
            _describe(headers, None if more else len(body))
        await self._send({**start, "headers": headers.raw})
        await self._send({**first, "body": body})

    def _is_wanted(self) -> bool:
        accepted = Headers(scope=self._scope).getlist("accept-encoding")
        return self._scope["http_version"] != "1.0" and takes_gzip(accepted)

    async def _compress(self, message: Message) -> bytes:
        body, more = message.get("body", b""), message.get("more_body", False)
        if len(body) > ON_LOOP:
            return await asyncio.to_thread(self._compressed, body, more)
        return self._compressed(body, more)

    def _compressed(self, body: bytes, more: bool) -> bytes:
        compressed: bytes = self._compressor.compress(body)
        return compressed if more else compressed + self._compressor.flush()


def _is_text(start: Message) -> bool:
    """Return whether an answer may be worth it: whole, of a type that gets smaller, and not changed by anyone yet."""
    for name, value in start["headers"]:  # most answers end here, before anything is made of their headers
        if name == b"content-length" and value.isdigit() and int(value) < SMALLEST:
            return False
    headers = Headers(raw=start["headers"])
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    whole = start["status"] not in (204, 206, 304) and "content-range" not in headers
    changed = "content-encoding" in headers or "no-transform" in headers.get("cache-control", "")
    return kind in TYPES and whole and not changed


def _describe(headers: MutableHeaders, length: int | None) -> None:
    """Change what headers say of a body that is compressed now. length: in bytes; None before it is known."""
    headers["content-encoding"] = "gzip"
    del headers["accept-ranges"]
    if length is None:
        del headers["content-length"]
    else:
        headers["content-length"] = str(length)
    tag = headers.get("etag")
    if tag is not None and not tag.startswith("W/"):
        headers["etag"] = f"W/{tag}"
