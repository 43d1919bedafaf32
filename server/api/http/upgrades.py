"""Requests that ask for another protocol, as HTTP/2 clients of Java and curl do, answered in HTTP/1.1 with bodies.

The parser takes what follows such a head for the other protocol. A new parser is therefore given a head that describes
the same body, and reports nothing of that head, so that the body is not taken for another request.

Knows the parser only.
"""

from collections.abc import Iterable
from typing import Any

import httptools

_FRAMING = (b"content-length", b"transfer-encoding")


def framing(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the headers that say that a request has a body, and how long, as they are sent; empty without a body."""
    found = [(name, value) for name, value in headers if name in _FRAMING and value.strip() != b"0"]
    return b"".join(b"%b: %b\r\n" % pair for pair in found)


def parser_after_head(head: bytes, protocol: Any) -> httptools.HttpRequestParser:
    """Return a parser that has read a head with these headers. protocol: what is called for all that follows."""
    parser = httptools.HttpRequestParser(_AfterHead(protocol))
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    parser.feed_data(b"POST / HTTP/1.1\r\n" + head + b"\r\n")
    return parser


class _AfterHead:
    """The callbacks of a protocol, but for those of the first head."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._head_read = False
        self.on_body = protocol.on_body
        self.on_chunk_header = protocol.on_chunk_header
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if self._head_read:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._head_read:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_read:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._head_read:
            self._protocol.on_headers_complete()
        self._head_read = True
