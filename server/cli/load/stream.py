"""One streamed request over HTTP, and its measurement: the time of every chunk of the event stream that has a token.

It uses a connection of its own and httptools' parser: a general client takes six times as long for a chunk, at the
expense of a server on the same cores.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import httptools
import httpx

SILENCE = 600.0  # seconds without a word from the server, after which a request has failed


@dataclass
class Measurement:
    """One request's measurement. Times are seconds of one clock: start, each chunk of text, and the end of the stream.

    start: when the request was due, which in an open loop is its arrival. late: seconds from there until it was sent.
    Token counts are the server's; 0 where it reports none.
    """

    model: str
    start: float
    chunks: list[float] = field(default_factory=list)
    end: float = 0.0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    late: float = 0.0
    error: str | None = None

    @property
    def num_tokens(self) -> int:
        """Return the server's count of output tokens, or else the number of chunks."""
        return self.completion_tokens or len(self.chunks)

    @property
    def is_good(self) -> bool:
        return self.error is None and bool(self.chunks)

    @property
    def ttft(self) -> float:
        """Return the time to first token in seconds."""
        return self.chunks[0] - self.start

    @property
    def gaps(self) -> list[float]:
        """Return the seconds between consecutive chunks."""
        return [after - before for before, after in pairwise(self.chunks)]


@dataclass(frozen=True)
class Endpoint:
    """A server's address, and the headers of its requests."""

    url: httpx.URL
    headers: Mapping[str, str]

    @cached_property
    def place(self) -> dict[str, Any]:
        """Return the arguments of `create_connection`."""
        secure = ssl.create_default_context() if self.url.scheme == "https" else None
        return {"host": self.url.host, "port": self.url.port or (443 if secure else 80), "ssl": secure}

    def message(self, body: bytes) -> bytes:
        """Return a whole HTTP request for a completion."""
        path = self.url.raw_path.decode().rstrip("/") + "/v1/completions"
        own = {"host": self.url.netloc.decode(), "connection": "close", "content-type": "application/json"}
        lines = [f"{name}: {value}\r\n" for name, value in {**own, **self.headers, "content-length": len(body)}.items()]
        return "".join([f"POST {path} HTTP/1.1\r\n", *lines, "\r\n"]).encode() + body


async def ask(endpoint: Endpoint, body: bytes, measurement: Measurement) -> None:
    """Send one request and fill in its measurement. A failure of server or connection is the measurement's error."""
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
    """The parser of a response. heard: when data last arrived. httptools calls the methods `on_...`."""

    def __init__(self, measurement: Measurement) -> None:
        self.heard = 0.0
        self._measurement = measurement
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._rest = b""
        self._ends_with_connection = True

    async def wait(self) -> None:
        """Wait for the response's end, or until the server has been silent for SILENCE seconds."""
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
        """End the response; only the first call counts. An error event of the stream goes before this error."""
        if not self._done.done():
            self._measurement.error = self._measurement.error or error
            self._done.set_result(None)


def _take(line: bytes, measurement: Measurement, now: float) -> None:
    """Take one line of the event stream into the measurement."""
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
