"""The time that one connection may take for what it is doing. Knows seconds and bytes; knows no sockets and no HTTP.

A caller looks now and then and says what it sees; the time counts from the first look that saw the same. So nothing is
noted while requests run, and a connection is overdue at the earliest when its time is over and at the latest two looks
later.
"""

import math
from dataclasses import dataclass
from enum import Enum

MIN_RATE = 1024  # bytes a second, on average over a span
PARTING_SECONDS = 1.0  # for a client that is refused to see why, before what it still sends resets the connection
SPAN = 4  # times the patience: for so long a body, or an answer, may come more slowly than MIN_RATE
LONGEST_PAUSE = 1.0  # seconds between two looks
LOOKS = 4  # in the shortest timeout


@dataclass(frozen=True)
class Timeouts:
    """The timeouts of a connection, in seconds; 0 is none.

    headers: until a request's head is whole, from its first byte, or from the opening of a connection. body: between
    the bytes of a body. idle: between an answer and the next request. write: for a client that takes nothing of what
    it is sent.
    """

    headers: float = 10.0
    body: float = 60.0
    idle: float = 75.0
    write: float = 60.0

    @property
    def pause(self) -> float:
        """Return the seconds from one look to the next."""
        return min(
            [LONGEST_PAUSE, *(limit / LOOKS for limit in (self.headers, self.body, self.idle, self.write) if limit)]
        )


class Doing(Enum):
    """What a connection waits for from its client."""

    HEAD = "head"  # a request's line and headers, of which something may be there
    BODY = "body"
    REST = "rest"  # the remaining body of a request that has been answered
    NEXT = "next"  # the next request, of which nothing has come
    PARTING = "parting"  # nothing but that a refused client reads why
    NOTHING = "nothing"  # the server is at work


class Overdue(Enum):
    """The timeout that is over, by the reason under which it is counted."""

    HEAD = "timeout_headers"
    BODY = "timeout_body"
    NEXT = "timeout_idle"
    WRITE = "timeout_write"
    PARTING = "parted"


class Progress:
    """A watch on a count that must grow in each `patience` seconds, and by MIN_RATE on average over a span.

    It begins with the first look.
    """

    __slots__ = ("_begun", "_count", "_moved", "_patience", "_span_began", "_span_count")

    def __init__(self, patience: float) -> None:
        self._patience = patience or math.inf
        self._begun = False

    def restart(self, count: int, now: float) -> None:
        """Begin anew at a count of bytes and a time in seconds."""
        self._begun = True
        self._count = self._span_count = count
        self._moved = self._span_began = now

    def stalls(self, count: int, now: float) -> bool:
        """Return whether the count, now at `count` bytes, has stood still for too long or grows too slowly."""
        if not self._begun:
            self.restart(count, now)
        elif count != self._count:
            self._count, self._moved = count, now
        elif now - self._moved > self._patience:
            return True
        return self._is_slow(count, now)

    def _is_slow(self, count: int, now: float) -> bool:
        """Return whether a span that ends now was too slow, and begin the next, to which its speed is no credit."""
        seconds = now - self._span_began
        if seconds < SPAN * self._patience:
            return False
        slow = count - self._span_count < MIN_RATE * seconds
        self._span_began, self._span_count = now, count
        return slow


class ConnectionClock:
    """The clock of one connection."""

    __slots__ = ("_body", "_key", "_since", "_timeouts", "_write")

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._body = Progress(timeouts.body)
        self._write = Progress(timeouts.write)
        self._key: tuple[Doing, int] | None = None
        self._since = 0.0

    def look(
        self, now: float, doing: Doing, requests: int, *, received: int, taken: int, unsent: int
    ) -> Overdue | None:
        """Return the timeout that is over, if any. now: seconds. requests: number of whole heads so far.

        received: bytes of bodies so far. taken: bytes that the client has taken. unsent: bytes that wait to be sent.
        """
        if unsent == 0:
            self._write.restart(taken, now)
        elif self._write.stalls(taken, now):
            return Overdue.WRITE
        key = doing, requests
        if key != self._key:
            self._key, self._since = key, now
            self._body.restart(received, now)
        return self._overdue(doing, now, received)

    def _overdue(self, doing: Doing, now: float, received: int) -> Overdue | None:
        timeouts, seconds = self._timeouts, now - self._since
        if doing is Doing.HEAD and 0 < timeouts.headers < seconds:
            return Overdue.HEAD
        if doing is Doing.NEXT and 0 < timeouts.idle < seconds:
            return Overdue.NEXT
        if doing is Doing.REST and 0 < timeouts.body < seconds:
            return Overdue.BODY
        if doing is Doing.BODY and self._body.stalls(received, now):
            return Overdue.BODY
        if doing is Doing.PARTING and seconds > PARTING_SECONDS:
            return Overdue.PARTING
        return None
