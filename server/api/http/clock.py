"""How long one connection may take for what it is doing. Knows seconds and bytes; knows no sockets and no HTTP.

Who looks says what it sees, now and then; the time counts from the first look that saw the same. So nothing is noted
while requests run, and a connection is overdue at the earliest when its time is over and at the latest two looks later.
"""

import math
from dataclasses import dataclass
from enum import Enum

MIN_RATE = 1024  # bytes a second, on the mean of a span
PARTING_SECONDS = 1.0  # for a client that is refused to see why, before what it still sends resets the connection
SPAN = 4  # times the patience: for so long a body, or an answer, may come more slowly than MIN_RATE
LONGEST_PAUSE = 1.0  # seconds between two looks
LOOKS = 4  # in the shortest timeout


@dataclass(frozen=True)
class Timeouts:
    """In seconds; 0 is none.

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
        """Seconds from one look to the next."""
        return min(
            [LONGEST_PAUSE, *(limit / LOOKS for limit in (self.headers, self.body, self.idle, self.write) if limit)]
        )


class Doing(Enum):
    """What a connection waits for."""

    HEAD = "head"  # a request's line and headers, of which something may be there
    BODY = "body"
    REST = "rest"  # of a body, when its request has been answered
    NEXT = "next"  # request, of which nothing is there
    PARTING = "parting"  # refused, it only has to read why
    NOTHING = "nothing"  # that the client would owe us


class Overdue(Enum):
    HEAD = "timeout_headers"
    BODY = "timeout_body"
    NEXT = "timeout_idle"
    WRITE = "timeout_write"
    PARTING = "parted"


class Progress:
    """Whether what is counted goes on: in each `patience` seconds a little, and at MIN_RATE on the mean of a span."""

    __slots__ = ("_count", "_moved", "_patience", "_span_began", "_span_count")

    def __init__(self, patience: float) -> None:
        self._patience = patience or math.inf
        self.restart(0, 0.0)

    def restart(self, count: int, now: float) -> None:
        self._count = self._span_count = count
        self._moved = self._span_began = now

    def stalls(self, count: int, now: float) -> bool:
        if count != self._count:
            self._count, self._moved = count, now
        elif now - self._moved > self._patience:
            return True
        return self._is_slow(count, now)

    def _is_slow(self, count: int, now: float) -> bool:
        """At the end of a span, which begins the next one: what came quickly at first is no credit for later."""
        seconds = now - self._span_began
        if seconds < SPAN * self._patience:
            return False
        slow = count - self._span_count < MIN_RATE * seconds
        self._span_began, self._span_count = now, count
        return slow


class ConnectionClock:
    """Of one connection."""

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
        """requests: whole heads so far. In bytes, received: of bodies; taken: by the client; unsent: by nobody."""
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
