"""One request over HTTP: its event stream read to the end, with the time of every chunk that has a token.

A connection of its own and the parser of httptools: a general client takes six times as long for a chunk, which a
server on the same cores would pay for.
"""

import asyncio
import json
import ssl
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httptools
import httpx

from .measure import Measurement

SILENCE = 600.0  # seconds without a word from the server, after which a request has failed


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, and what stands before their bodies."""

    url: httpx.URL
    headers: dict[str, str]

    @cached_property
    def place(self) -> dict[str, Any]:
        secure = ssl.create_default_context() if self.url.scheme == "https" else None
        return {"host": self.url.host, "port": self.url.port or (443 if secure else 80), "ssl": secure}

    def message(self, body: bytes) -> bytes:
        path = self.url.raw_path.decode().rstrip("/") + "/v1/completions"
        own = {"host": self.url.netloc.decode(), "connection": "close", "content-type": "application/json"}
        lines = [f"{name}: {value}\r\n" for name, value in {**own, **self.headers, "content-length": len(body)}.items()]
        return "".join([f"POST {path} HTTP/1.1\r\n", *lines, "\r\n"]).encode() + body


async def ask(endpoint: Endpoint, body: bytes, measurement: Measurement) -> None:
    """Fills the measurement in. What the server or the connection fails at is the measurement's error."""
    reply = Reply(measurement)
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: reply, **endpoint.place)
    except OSError as error:
        measurement.error = f"no connection: {error}"
    else:
        try:
            transport.write(endpoint.message(body))
            await reply.wait()
        finally:
            transport.close()
    if not measurement.chunks:
        measurement.error = measurement.error or "the answer had no token"
    measurement.end = reply.heard or time.perf_counter()


class Reply(asyncio.Protocol):
    """What comes back. heard: when something last did. The parser calls the methods `on_...`."""

    def __init__(self, measurement: Measurement) -> None:
        self.heard = 0.0
        self._measurement = measurement
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._rest = b""
        self._ends_with_connection = True

    async def wait(self) -> None:
        while not self._done.done():
            before = self.heard
            await asyncio.wait([self._done], timeout=SILENCE)
            if not self._done.done() and self.heard == before:
                self._end(f"the server was silent for {SILENCE:.0f} s")

    def data_received(self, data: bytes) -> None:
        self.heard = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"the answer could not be read: {error.__context__ or error!r}")

    def on_header(self, name: bytes, _value: bytes) -> None:
        self._ends_with_connection &= name.lower() not in (b"content-length", b"transfer-encoding")

    def on_body(self, part: bytes) -> None:
        *lines, self._rest = (self._rest + part).split(b"\n")
        if self._parser.get_status_code() >= 400:
            self._rest = b"\n".join([*lines, self._rest])
            return
        for line in lines:
            _take(line, self._measurement, self.heard)

    def on_message_complete(self) -> None:
        failed = self._parser.get_status_code() >= 400
        self._end(self._rest.decode(errors="replace")[:500] or "an error without a word" if failed else None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done() and self.heard and not error and self._ends_with_connection:
            self.on_message_complete()
        self._end(f"the connection broke: {error or 'closed by the server'}")

    def _end(self, error: str | None) -> None:
        """The first end counts. An error that the stream itself has told says more."""
        if not self._done.done():
            self._measurement.error = self._measurement.error or error
            self._done.set_result(None)


def _take(line: bytes, measurement: Measurement, now: float) -> None:
    """One line of the event stream."""
    if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]":
        return
    event = json.loads(data)
    if "error" in event:
        measurement.error = _message(event["error"])
    if any(choice.get("text") or choice.get("token_ids") for choice in event.get("choices") or ()):
        measurement.chunks.append(now)
    if usage := event.get("usage"):
        measurement.completion_tokens = usage["completion_tokens"]
        measurement.prompt_tokens = usage.get("prompt_tokens", 0)


def _message(error: Any) -> str:
    return str(error.get("message")) if isinstance(error, dict) else str(error)
