"""A fleet of replicas, the events between them, and what policies may know of them."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from random import Random

from .costs import Costs
from .memory import Holders
from .replica import Replica, Request, Shape
from .workload import Trace


@dataclass
class Fleet:
    """sequences: that each replica was given and that have not ended; total: their sum. device, host: who has what."""

    size: int
    shape: Shape
    costs: Costs
    draw: Random
    sequences: list[int] = field(init=False)
    total: int = 0
    device: Holders = field(default_factory=lambda: Holders(set))
    host: Holders = field(default_factory=lambda: Holders(set))
    replicas: list[Replica] = field(init=False)

    def __post_init__(self) -> None:
        holders = self.device, self.host, Holders(set)
        self.sequences = [0] * self.size
        self.replicas = [Replica(i, self.shape, self.costs, holders) for i in range(self.size)]


Policy = Callable[[Fleet, Request], int]
"""Choose the replica of a request, by its number."""


def run(fleet: Fleet, trace: Trace, policy: Policy) -> list[Request]:
    """Let a trace pass through a fleet; return its requests, each with what became of it."""
    requests = _requests(trace)
    events = _Events()
    for request in requests:
        while events.first() <= request.arrival:
            _turn(fleet, events)
        chosen = policy(fleet, request)
        fleet.sequences[chosen] += 1
        fleet.total += 1
        events.after(fleet, chosen, fleet.replicas[chosen].take(request, request.arrival))
    while events.first() < inf:
        _turn(fleet, events)
    return requests


def _requests(trace: Trace) -> list[Request]:
    columns = (trace.arrival, trace.adapter, trace.rank[trace.adapter], trace.prompt, trace.output)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [Request(number, *row) for number, row in enumerate(rows)]


class _Events:
    """When which replica is due. Of each replica only the newest turn counts; a load counts for itself."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, int | None]] = []
        self._due: dict[int, float] = {}
        self._number = 0

    def first(self) -> float:
        while self._heap:
            at, _, replica, adapter = self._heap[0]
            if adapter is not None or self._due.get(replica) == at:
                return at
            heapq.heappop(self._heap)
        return inf

    def pop(self) -> tuple[float, int, int | None]:
        at, _, replica, adapter = heapq.heappop(self._heap)
        if adapter is None:
            del self._due[replica]
        return at, replica, adapter

    def after(self, fleet: Fleet, number: int, due: float) -> None:
        """Note what a replica has begun, and when it is due next; count what has ended."""
        replica = fleet.replicas[number]
        for at, adapter in replica.loads:
            self._push(at, number, adapter)
        fleet.sequences[number] -= len(replica.ended)
        fleet.total -= len(replica.ended)
        replica.loads.clear()
        replica.ended.clear()
        if self._due.get(number) != due:
            self._due[number] = due
            if due < inf:
                self._push(due, number, None)

    def _push(self, at: float, replica: int, adapter: int | None) -> None:
        self._number += 1
        heapq.heappush(self._heap, (at, self._number, replica, adapter))


def _turn(fleet: Fleet, events: _Events) -> None:
    now, number, adapter = events.pop()
    replica = fleet.replicas[number]
    due = replica.turn(now) if adapter is None else replica.has_loaded(adapter, now)
    events.after(fleet, number, due)
