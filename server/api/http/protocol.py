"""The server's connections: bounded in what they may send, timed, counted, and with joined writes.

That a client has left is told by a call to what `watch` was given: a task that waits for ASGI's message of it costs
more than the work beside which it waits. A connection on the private socket is one of our workers, and is neither
bounded nor timed: what it forwards has come through a public connection.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from .clock import ConnectionClock, Doing, Overdue
from .connections import OpenConnections, Place
from .parser import BoundedHttp
from .refusals import CROWDED, CROWDED_ADDRESS, SLOW_BODY, SLOW_HEAD, Refusal, Refused
from .request_ids import REQUEST_ID
from .transport import JoinedWrites

MOST_DROPPED = 256 << 10  # bytes that a refused client may still send, before it is closed in its midst
CONNECTION = "peftserve.connection"  # in the ASGI scope: the `HttpProtocol`
REFUSED = "peftserve.refused"  # in the ASGI scope: the `Refusal` that the client got instead of an answer
SPARE = {Place.SPARE: CROWDED, Place.SPARE_OF_ADDRESS: CROWDED_ADDRESS}


class HttpProtocol(BoundedHttp):
    """One connection, which answers one request at a time.

    connections: where it takes its place among all others. private: it is on the socket between the processes.
    """

    address = ""  # of the client, where it is counted
    _leave: Callable[[], None] | None = None
    is_lost = False  # the client has left
    _parting = False  # the client has been told why it is refused
    _dropped = 0  # bytes since then
    _place: Place | None = None  # None on the private socket
    _has_full_place = False
    _joined: JoinedWrites  # set by connection_made()

    def __init__(self, connections: OpenConnections, *, private: bool = False, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._private = private
        self._connections = connections
        self._clock = ConnectionClock(connections.timeouts)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Join this connection's writes, and take a place among the others unless it is private."""
        self._joined = JoinedWrites(transport, self.loop)
        super().connection_made(cast(asyncio.Transport, self._joined))
        if self._private:
            return
        self.bound(self._connections.head_limit)
        self.address = self.client[0] if self.client else ""
        self._place = self._connections.enter(self)
        self._has_full_place = self._place is Place.FULL
        if self._place is Place.NONE:
            self.refuse(CROWDED)

    def on_headers_complete(self) -> None:
        """Begin a request, if the connection's place allows for it."""
        cast(dict[str, object], self.scope)[CONNECTION] = self
        if self._has_full_place:
            super().on_headers_complete()
            self._connections.busy(self)
        elif self._place is None:
            super().on_headers_complete()
        else:
            self._answer_beyond_limit(self._place)

    def _answer_beyond_limit(self, place: Place) -> None:
        """Answer one request of what is open to all, and close."""
        if not self._connections.is_open_to_all(self.url):
            self._fail(SPARE[place])
        super().on_headers_complete()
        self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """Do what uvicorn does, without its timer for idle connections."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.start_next_request():
            return
        if self.refusal is not None:
            self._part(self.refusal)
        elif self._has_full_place:
            self._connections.idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back, and call what `watch` was given."""
        super().connection_lost(exc)
        self.is_lost = True
        if self._place is not None:
            self._connections.leave(self)
        if self._leave is not None:
            self._leave()

    def watch(self, leave: Callable[[], None]) -> None:
        """Call `leave` when the client leaves, at once if it has left, until `unwatch`."""
        self._leave = leave
        self.flow.resume_reading()  # a connection that is not read does not end
        if self.is_lost:
            leave()

    def unwatch(self) -> None:
        """Call no longer what `watch` was given."""
        self._leave = None

    def look(self, now: float) -> None:
        """End the connection if it takes too long. now: seconds, as `OpenConnections.watch` counts them."""
        unsent = self._joined.unsent
        waiting = unsent + self._joined.unacknowledged if unsent else 0
        taken = self._joined.written - waiting
        overdue = self._clock.look(
            now, self._doing(), self.requests, received=self.received, taken=taken, unsent=unsent
        )
        if overdue is not None:
            self._end(overdue)

    def give_way(self) -> None:
        """Close, for another connection that has a request."""
        if self.refusal is not None:
            self._close()
        elif self._place in SPARE:
            self.refuse(SPARE[self._place])
        else:
            self._connections.count("idle")
            self._close()

    def refuse(self, refusal: Refusal) -> None:
        """Read nothing more, and close, after the answers to the requests that were whole."""
        self.refusal = refusal
        self._connections.count(refusal.reason)
        if not self._is_answering():
            self._part(Refusal(refusal.reason) if self.in_body else refusal)  # whose request has been answered
        elif not self.in_body:
            self.flow.pause_reading()
        elif self.pipeline:
            self.pipeline.popleft()  # the newest, which will never be whole
            self.flow.pause_reading()
        else:
            self._give_up(refusal)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _give_up(self, refusal: Refusal) -> None:
        """End the request that is being read and answered at once."""
        cycle = self.cycle
        if cycle.response_started:
            self.transport.close()
        else:
            self._part(refusal)
            cast(dict[str, object], self.scope)[REFUSED] = refusal
        cycle.disconnected = True
        cycle.message_event.set()

    def _part(self, refusal: Refusal) -> None:
        """Say why, and close when the client has had time to read it.

        What it sends to a closed connection would make its system discard what it has not read.
        """
        answer = refusal.answer(self._connections.refused(self.refused_request(refusal)))
        if answer:
            self.transport.write(answer)
        if answer and self._place in (Place.FULL, *SPARE):
            self._parting = True
            self._connections.part(self)
            self._joined.flush()
            if self.transport.can_write_eof():  # TLS has no half of an end
                self.transport.write_eof()
            self.flow.resume_reading()  # to see it leave
        else:
            self.transport.close()

    def refused_request(self, refusal: Refusal) -> Refused:
        """Return what is known of the request that is turned away: its whole head, a part of it, or nothing."""
        status = None if refusal.error is None else refusal.error.status_code
        if self.in_body:
            method, headers = self.scope["method"], list(self.scope["headers"])
        else:
            method, headers = "", self.headers or []
        known = self.in_head or self.in_body
        url, headers = (self.url, headers) if known else (b"", [])
        request_id = cast(dict[str, Any], self.scope).get(REQUEST_ID) if self._is_answering() else None
        return Refused(refusal.reason, status, method, url, headers, self.address, request_id)

    def drop(self, number: int) -> None:
        """Count what a refused client still sends, and close after too much of it."""
        self._dropped += number
        if self._dropped > MOST_DROPPED:
            self._close()

    def _doing(self) -> Doing:
        if self.refusal is not None or self.transport.is_closing():
            return Doing.PARTING if self._parting else Doing.NOTHING
        if self.in_body:
            if self.cycle.response_complete:
                return Doing.REST
            return Doing.NOTHING if self.flow.read_paused else Doing.BODY
        if self._is_answering():
            return Doing.NOTHING
        return Doing.HEAD if self.has_begun or self.requests == 0 else Doing.NEXT

    def _end(self, overdue: Overdue) -> None:
        if overdue is Overdue.HEAD and self.in_head:
            self.refuse(SLOW_HEAD)
        elif overdue is Overdue.BODY and not self.cycle.response_complete:
            self.refuse(SLOW_BODY)
        elif overdue is Overdue.WRITE:
            self._connections.count(overdue.value)
            self.transport.abort()
        else:  # no client waits for an answer
            if overdue is not Overdue.PARTING:
                self._connections.count(overdue.value)
            self._close()

    def _close(self) -> None:
        """Close at once, even if the client does not take what it was sent, or by TLS says no good-bye."""
        if self._joined.unsent or self.scheme == "https":
            self.transport.abort()
        else:
            self.transport.close()
