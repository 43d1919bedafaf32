"""All connections of one API process: their number, which gives way if there are too many, and which takes too long.

Knows connections by their interface, and the other processes by their counts; knows no HTTP but the few paths that are
answered beyond all limits.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from .clock import Timeouts
from .connection_counts import ConnectionCounts, counts_of_one
from .refusals import Refused, id_alone

logger = logging.getLogger(__name__)

MAX_SPARE = 64  # connections beyond the limit, of which each may ask for what is open to all


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of connections, of which 0 is none.

    header_bytes: of a request's line and headers. connections, per_address: at once, in all processes.
    """

    header_bytes: int = 32 << 10
    connections: int = 4096
    per_address: int = 0
    timeouts: Timeouts = field(default_factory=Timeouts)


class Place(Enum):
    """The place that a new connection gets."""

    FULL = "full"
    SPARE = "spare"  # one beyond the limit, for a request of what is open to all
    SPARE_OF_ADDRESS = "spare of address"  # the same, beyond what one address may have
    NONE = "none"


class Connection(Protocol):
    """A connection as `OpenConnections` sees it. address: of the client."""

    address: str

    def look(self, now: float) -> None:
        """End the connection if it takes too long. now: seconds, of which those do not count in which nobody looked."""

    def give_way(self) -> None:
        """Close the connection, for another."""


def _count_nothing(reason: str) -> None:
    pass


class OpenConnections:
    """The open connections of one process.

    counts: the counts of all processes; None for a server that is one process. always: paths that are answered even
    beyond the limits. count: called with the reason for which a connection or a request was turned away.
    refused: called for each request that is, with no application to tell of it; returns headers for its answer.
    """

    def __init__(
        self,
        limits: ConnectionLimits | None = None,
        counts: ConnectionCounts | None = None,
        *,
        always: frozenset[bytes] = frozenset(),
        count: Callable[[str], None] = _count_nothing,
        refused: Callable[[Refused], Iterable[tuple[bytes, bytes]]] = id_alone,
    ) -> None:
        self._limits = limits or ConnectionLimits()
        self._counts = counts or counts_of_one()
        self._always = always
        self._all: dict[Connection, Place] = {}
        self._waiting: OrderedDict[Connection, None] = OrderedDict()  # those without a request, the longest idle first
        self._spare: OrderedDict[Connection, None] = OrderedDict()
        self.count = count
        self.refused = refused
        self.head_limit = self._limits.header_bytes
        self.timeouts = self._limits.timeouts

    def enter(self, connection: Connection) -> Place:
        """Give a connection a place until `leave`. The one that has been idle longest may have to give way for it."""
        place = self._place_for(connection)
        if place is not Place.NONE:
            self._all[connection] = place
            self._counts.add(1)
            (self._waiting if place is Place.FULL else self._spare)[connection] = None
            if self._limits.per_address:
                self._counts.add_from(connection.address, 1)
        return place

    def leave(self, connection: Connection) -> None:
        """Take back a connection's place, if it has one."""
        if self._all.pop(connection, None) is None:
            return
        self._waiting.pop(connection, None)
        self._spare.pop(connection, None)
        self._counts.add(-1)
        if self._limits.per_address:
            self._counts.add_from(connection.address, -1)

    def busy(self, connection: Connection) -> None:
        """Note that a connection has a request."""
        self._waiting.pop(connection, None)

    def idle(self, connection: Connection) -> None:
        """Note that a connection with a full place has been answered."""
        self._waiting[connection] = None

    def part(self, connection: Connection) -> None:
        """Note that a connection has been refused, and is the first to give way to another."""
        self._spare.pop(connection, None)
        self._waiting[connection] = None
        self._waiting.move_to_end(connection, last=False)

    def is_open_to_all(self, url: bytes) -> bool:
        """Return whether a request's URL is answered even beyond the limits."""
        return url.partition(b"?")[0] in self._always

    async def watch(self) -> None:
        """Look at all connections now and then, for ever.

        Time in which nobody looked does not count: what came while this process stood still is not read yet.
        """
        loop, pause = asyncio.get_running_loop(), self.timeouts.pause
        now = looked = loop.time()
        while True:
            await asyncio.sleep(pause)
            woken = loop.time()
            now, looked = now + min(woken - looked, 2 * pause), woken
            for connection in list(self._all):
                self._look(connection, now)

    def _look(self, connection: Connection, now: float) -> None:
        try:
            connection.look(now)
        except Exception:  # of this one, and the others are looked at all the same
            logger.exception("A connection could not be looked at")

    def _place_for(self, connection: Connection) -> Place:
        crowded = 0 < self._limits.per_address <= self._counts.of(connection.address)
        if not crowded and (self._has_room() or self._make_room()):
            return Place.FULL
        if not self._always:
            return Place.NONE
        if len(self._spare) >= MAX_SPARE:
            self._spare.popitem(last=False)[0].give_way()
        return Place.SPARE_OF_ADDRESS if crowded else Place.SPARE

    def _has_room(self) -> bool:
        return self._limits.connections == 0 or self._counts.total < self._limits.connections

    def _make_room(self) -> bool:
        """Let the longest idle connection give way; return False if none is idle."""
        if not self._waiting:
            return False
        self._waiting.popitem(last=False)[0].give_way()
        return True
