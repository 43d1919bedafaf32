"""uvicorn's HTTP/1.1 parser, with limits on what a client can make it keep or read.

Bytes are counted as the parser gets them, and no more often: what one head, or what stands between the bytes of one
body, may take is fed in pieces that are not larger than that. Only where heads follow each other in one piece, or a
body is in it too, is a head's size looked up. Knows the parser; knows no clocks and no routes, nor what happens to a
connection that is refused.
"""

import sys

import httptools

from ..private.uvicorn_private import UvicornHttp
from .refusals import INVALID, PIPELINED, Refusal, large_frames, large_head, long_url, many_headers
from .upgrades import framing, parser_after_head

MAX_HEADERS = 100  # of one request
MAX_PIPELINED = 64  # requests that wait on one connection for the answer to another
CHUNK_FRAME = 32  # bytes of a chunk that are not the body: its length in 16 digits, and the ends of two lines
HEADER_FRAME = 4  # the colon, the blank behind it and the end of the line
LINE_FRAME = 64  # of the first line what is not the URL, and the head's last line


class BoundedHttp(UvicornHttp):
    """A connection whose requests are bounded in size and number; without limits until `bound` sets them.

    requests: whole heads so far. received: bytes of bodies so far. in_head, in_body: where in a request the parser is.
    """

    head_limit = sys.maxsize
    max_headers = sys.maxsize
    refusal: Refusal | None = None
    requests = 0
    received = 0
    in_head = False
    in_body = False
    _fault: Refusal | None = None  # found in what is being parsed
    _fed = 0  # bytes of this head, or of this body without the body itself; those of the piece where it began left out
    _follows = False  # whether another request's bytes are in the piece in which this one's head began

    def bound(self, head_limit: int) -> None:
        """Set the limits. head_limit: bytes of a URL and headers together, and of what chunks have beside the body."""
        self.head_limit, self.max_headers = head_limit, MAX_HEADERS

    def refuse(self, refusal: Refusal) -> None:
        """Set `refusal`, after which nothing more is parsed."""
        raise NotImplementedError

    def drop(self, number: int) -> None:
        """Note that `number` bytes have come since `refuse`."""
        raise NotImplementedError

    @property
    def has_begun(self) -> bool:
        """Return whether a part of a request has come and the rest has not."""
        return self.in_head or self.in_body or self._fed > 0

    def data_received(self, data: bytes) -> None:
        """Parse what has come, unless the client has been refused."""
        if self.refusal is not None:
            self.drop(len(data))
        elif self.in_body or len(data) <= self.head_limit:
            self._take(data)
        else:
            self._take_in_pieces(data)

    def _take_in_pieces(self, data: bytes) -> None:
        """Parse no more at once of a head than its limit, so that no more is kept of it than twice that."""
        while data and self.refusal is None:
            piece = data if self.in_body else data[: self.head_limit]
            self._take(piece)
            data = data[len(piece) :]

    def _take(self, data: bytes) -> None:
        self._fed += len(data)
        if not self.in_head:
            self._follows = self.in_body
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._take_after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.refuse(self._fault or INVALID)
        else:
            if self._fed > self.head_limit + LINE_FRAME:
                self.refuse(self._surplus())
            elif self._fed < 0:
                self._fed = 0  # chunks that take less than their share earn nothing for later ones

    def _take_after_upgrade(self, data: bytes) -> None:
        """Parse what follows a request for another protocol, which a server need not grant.

        Called by itself as often as one piece has such requests, which MAX_PIPELINED bounds.
        """
        if self.in_body:
            self.parser = parser_after_head(framing(self.scope["headers"]), self)
        self._fed -= len(data)
        self._take(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head = True

    def on_headers_complete(self) -> None:
        """Check a whole head; fail if it, or the number of requests that wait, is over the limits."""
        if self._follows or self._fed > self.head_limit or len(self.headers) > self.max_headers:
            self._check_headers(len(self.url))
        if len(self.pipeline) >= MAX_PIPELINED:
            self._fail(PIPELINED)
        super().on_headers_complete()
        self.headers = []  # for trailers, which are not to come among headers that have been looked at
        self.in_head, self.in_body = False, True
        self.requests += 1
        self._fed = 0

    def on_chunk_header(self) -> None:
        """Allow for the frame of a chunk, which is not the client's to choose."""
        self._fed -= CHUNK_FRAME

    def on_body(self, body: bytes) -> None:
        self.received += len(body)
        self._fed -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and framing(self.scope["headers"]):
            return  # its body is still to come
        if self.headers:
            self._check_headers(0)
        super().on_message_complete()
        self.in_body = False
        self._follows = True
        self._fed = 0

    def _check_headers(self, url_size: int) -> None:
        """Fail if a whole head, or all trailers, are over the limits."""
        if url_size > self.head_limit:
            self._fail(long_url(self.head_limit))
        if url_size + sum(len(name) + len(value) + HEADER_FRAME for name, value in self.headers) > self.head_limit:
            self._fail(large_head(self.head_limit))
        if len(self.headers) > self.max_headers:
            self._fail(many_headers(self.max_headers))

    def _surplus(self) -> Refusal:
        """Return the refusal for a part of a request that is too large before its end has come."""
        if self.in_body:
            return (large_head if self.headers else large_frames)(self.head_limit)
        is_url = self.in_head and len(self.url) > self.head_limit
        return (long_url if is_url else large_head)(self.head_limit)

    def _fail(self, fault: Refusal) -> None:
        """End the parsing, by an exception that the parser turns into an error of its own."""
        self._fault = fault
        raise ValueError(fault.reason)
