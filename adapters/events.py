"""What happens to adapters, told to those who watch: a bounded past, and bounded queues of bounded watchers.

A watcher that reads too slowly is cut off: it is told so, and may come back with the id of the last event that it saw.
All calls come from the one event loop. Knows no HTTP.
"""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

from .names import VersionRef

logger = logging.getLogger(__name__)

Kind = Literal[
    "adapter.added",
    "adapter.deleted",
    "adapter.restored",
    "adapter.loaded",
    "adapter.unloaded",
    "default.changed",
    "route.changed",
    "settings.changed",
    "dropped",
]
PAST = 1024
MAX_WATCHERS = 64
OWN_WATCHERS = 4  # of each who asks, whoever else has all places
QUEUE = 2 * PAST


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One event. id: counts up, also over restarts. time: in seconds since 1970.

    name, version: of the adapter, or of the route; without a name, what it was about exists no more, or is the base.
    owner: whose it is, for those who do not see all; never sent.
    """

    id: int
    event: Kind
    time: float
    name: str | None = None
    version: int | None = None
    digest: str | None = None
    owner: str = ""


class TooManyWatchers(Exception):
    """There are as many watchers as are allowed."""


class Watcher:
    """One who watches. Close it, or leave its `with` block, when nobody reads any more.

    sees: whether it is told of what happens to an owner's names. who: tells it from others.
    """

    def __init__(
        self, leave: Callable[["Watcher"], None], sees: Callable[[str], bool] = lambda _: True, who: str = ""
    ) -> None:
        self._leave = leave
        self.who = who
        self._sees = sees
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()
        self._ended = False

    async def read(self, patience: float) -> list[Event] | None:
        """Return the next events; none of them if nothing happened for so many seconds; None at the end."""
        if not self._events and not self._ended:
            try:
                await asyncio.wait_for(self._news.wait(), patience)
            except TimeoutError:
                return []
        self._news.clear()
        events = list(self._events)
        self._events.clear()
        return events or None

    def put(self, event: Event) -> None:
        """Take an event, if it is told of it; `dropped` is the last one, in place of the one that found no room."""
        if not self._sees(event.owner):
            return
        self._events.append(event)
        self._news.set()

    def end(self) -> None:
        """Let what reads come to an end once it has read all."""
        self._ended = True
        self._news.set()

    @property
    def is_full(self) -> bool:
        return len(self._events) >= QUEUE

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(self)


class EventLog:
    """The events of a server."""

    def __init__(self) -> None:
        # Ids of a server's next life are higher: nobody tells so many events as microseconds go by.
        self._ids = itertools.count(time.time_ns() // 1000)
        self._past: deque[Event] = deque(maxlen=PAST)
        self._watchers: set[Watcher] = set()
        self._listeners: list[Callable[[Event], None]] = []
        self._closed = False

    def add_listener(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event from now on, in the turn of the loop that tells of it.

        What it raises is logged: what it is told of has been done.
        """
        self._listeners.append(listener)

    def tell(self, kind: Kind, ref: VersionRef | None = None, name: str | None = None, owner: str = "") -> None:
        """Tell all watchers of an event. ref: the version that it is about; name: of something without one.

        owner: whose that is.
        """
        name, version, digest = (name, None, None) if ref is None else ref
        event = Event(
            id=next(self._ids), event=kind, time=time.time(), name=name, version=version, digest=digest, owner=owner
        )
        self._past.append(event)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("Whoever listens has failed at %s", kind)
        for watcher in tuple(self._watchers):
            if watcher.is_full:
                self._cut_off(watcher)
            else:
                watcher.put(event)

    def watch(self, after: int | None = None, sees: Callable[[str], bool] = lambda _: True, who: str = "") -> Watcher:
        """Begin to watch. Raises TooManyWatchers.

        who: watches. sees: whether this one is told of what happens to an owner's names.
        after: the last event that the watcher has seen. Those behind it come first; the first is `dropped` where some
        of them are no longer known.
        """
        total, own = len(self._watchers), sum(watcher.who == who for watcher in self._watchers)
        if total >= MAX_WATCHERS and (own >= OWN_WATCHERS or total >= 2 * MAX_WATCHERS):
            raise TooManyWatchers
        watcher = Watcher(self._watchers.discard, sees, who)
        if self._closed:
            watcher.end()
            return watcher
        if after is not None:
            if not any(event.id == after for event in self._past):
                watcher.put(_dropped(after))
            for event in [event for event in self._past if event.id > after]:
                watcher.put(event)
        self._watchers.add(watcher)
        return watcher

    def close(self) -> None:
        """End all watchers, and those that come."""
        self._closed = True
        for watcher in self._watchers:
            watcher.end()

    def _cut_off(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)
        watcher.put(_dropped(self._past[-1].id - 1))  # with the id of the last that it gets
        watcher.end()


def _dropped(last: int) -> Event:
    return Event(id=last, event="dropped", time=time.time())
