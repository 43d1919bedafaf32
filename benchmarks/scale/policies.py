"""Which replica a request goes to: one function a policy, and a table of them.

`shipped` is the server's own, `peftserve.server.deploy.affinity.choose`. `indexed` chooses as it does from the same
draws, but finds the replicas that have an adapter by an index, which a simulation of a thousand needs: tests hold the
two together.
"""

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from hashlib import blake2b

from peftserve.server.deploy.affinity import DEFAULT_BOUND, Bound, ReplicaState, choose, homes

from .fleet import Fleet, Policy
from .replica import Request

HOMES = 16  # of an adapter that are remembered: with all of them over the bound, all are looked at again
ROOMY = Bound(free=24)  # of sequences that any replica may have: near the batch that a step hardly feels
POINTS = 64  # of a replica on the ring
EXPECTED = 150  # tokens of an answer, whose length nobody knows before


def random_two(fleet: Fleet, request: Request) -> int:
    """Choose the less busy of any two: adapters do not matter."""
    return _less_busy(fleet, range(fleet.size))


def affinity(fleet: Fleet, request: Request) -> int:
    """Choose the less busy of two that have the adapter on the device, else on the host, else of any two."""
    having = _least_of_holders(fleet, request, _most(fleet))
    return _less_busy(fleet, range(fleet.size)) if having is None else having


def rank_aware(fleet: Fleet, request: Request) -> int:
    """Choose the least predicted cost, of some that have the adapter and some that have not.

    The cost is the request's own wait for its first token, and what its rank and its row take of the others' steps.
    """
    found = [*_some(fleet, fleet.device.get(request.adapter, ()), 4)]
    found += [*_some(fleet, fleet.host.get(request.adapter, ()), 4), *_some(fleet, range(fleet.size), 4)]
    return min(found, key=lambda replica: _predicted(fleet, request, replica))


def indexed(bound: Bound = DEFAULT_BOUND) -> Policy:
    """Make the server's own choice, by an index."""

    def policy(fleet: Fleet, request: Request) -> int:
        most = _most(fleet, bound)
        having = _least_of_holders(fleet, request, most)
        if having is not None:
            return having
        first = [replica for replica in _first_homes(fleet.size, request.adapter) if fleet.sequences[replica] < most]
        if len(first) < 2:
            first = [replica for replica in _homes(fleet.size, request.adapter) if fleet.sequences[replica] < most]
        return min(first[:2], key=fleet.sequences.__getitem__)

    return policy


def shipped(bound: Bound = DEFAULT_BOUND) -> Policy:
    """Make the server's own choice, by its own code: a millisecond and more for a thousand replicas."""

    def policy(fleet: Fleet, request: Request) -> int:
        states = [
            ReplicaState(_name(replica), count, _Has(fleet.device, replica), _Has(fleet.host, replica))
            for replica, count in enumerate(fleet.sequences)
        ]
        return int(choose(states, [str(request.adapter)], fleet.draw, bound).name)

    return policy


def hashed() -> Policy:
    """Choose the next replica on a ring that is below the bound: consistent hashing with bounded loads."""
    ring: list[tuple[int, int]] = []

    def policy(fleet: Fleet, request: Request) -> int:
        if not ring:
            ring.extend(sorted((_hash(f"{one}/{point}"), one) for one in range(fleet.size) for point in range(POINTS)))
        most = _most(fleet)
        for replica in _around(ring, request.adapter):
            if fleet.sequences[replica] < most:
                return replica
        raise AssertionError("one is below the bound at least")

    return policy


def replicated(period: int = 20_000, full: float = 24.0) -> Policy:
    """Give each adapter as many replicas as its traffic needs, and choose the less busy of two of them.

    Traffic is counted over `period` requests. full: sequences of one adapter that a replica is to have.
    """
    ring: list[tuple[int, int]] = []
    copies: dict[int, int] = {}
    counts: dict[int, int] = {}
    seen = 0

    def policy(fleet: Fleet, request: Request) -> int:
        nonlocal seen, copies, counts
        if not ring:
            ring.extend(sorted((_hash(f"{one}/{point}"), one) for one in range(fleet.size) for point in range(POINTS)))
        counts[request.adapter] = counts.get(request.adapter, 0) + 1
        seen += 1
        if seen % period == 0:
            copies = {one: math.ceil(count / period * fleet.total / full) for one, count in counts.items()}
            counts = {}
        wanted = min(fleet.size, max(2, copies.get(request.adapter, 1)))
        return _less_busy(fleet, _first(_around(ring, request.adapter), wanted))

    return policy


POLICIES: dict[str, Callable[[], Policy]] = {
    "two choices": lambda: random_two,
    "hash": hashed,
    "affinity": lambda: affinity,
    "rank-aware": lambda: rank_aware,
    "replicate-hot": replicated,
    "shipped": indexed,
    "shipped-roomy": lambda: indexed(ROOMY),
}


class _Has:
    """What one replica has, as the collection that the server's own choice looks into."""

    def __init__(self, holders: dict[int, set[int]], replica: int) -> None:
        self._holders, self._replica = holders, replica

    def __contains__(self, digest: object) -> bool:
        return self._replica in self._holders.get(int(str(digest)), ())

    def __iter__(self) -> Iterator[str]:
        return (str(adapter) for adapter, having in self._holders.items() if self._replica in having)

    def __len__(self) -> int:
        return sum(self._replica in having for having in self._holders.values())


def _most(fleet: Fleet, bound: Bound = DEFAULT_BOUND) -> int:
    return max(bound.free, math.ceil((1 + bound.excess) * (fleet.total + 1) / fleet.size))


def _least_of_holders(fleet: Fleet, request: Request, most: int) -> int | None:
    for holders in (fleet.device, fleet.host):
        below = sorted(one for one in holders.get(request.adapter, ()) if fleet.sequences[one] < most)
        if below:
            return _less_busy(fleet, below)
    return None


def _less_busy(fleet: Fleet, replicas: Sequence[int]) -> int:
    return min(fleet.draw.sample(replicas, min(2, len(replicas))), key=fleet.sequences.__getitem__)


def _homes(size: int, adapter: int) -> list[int]:
    states = [ReplicaState(_name(replica), 0) for replica in range(size)]
    return [int(one.name) for one in homes(states, [str(adapter)])]


@cache
def _first_homes(size: int, adapter: int) -> list[int]:
    return _homes(size, adapter)[:HOMES]


def _name(replica: int) -> str:
    return f"{replica:06d}"


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _around(ring: Sequence[tuple[int, int]], adapter: int) -> Iterable[int]:
    """Yield the replicas in the order of the ring, each at its first point."""
    begin = bisect.bisect(ring, (_hash(str(adapter)), -1))
    seen = set()
    for at in range(len(ring)):
        _, replica = ring[(begin + at) % len(ring)]
        if replica not in seen:
            seen.add(replica)
            yield replica


def _first(replicas: Iterable[int], number: int) -> list[int]:
    return [replica for replica, _ in zip(replicas, range(number), strict=False)]


def _some(fleet: Fleet, replicas: Iterable[int], number: int) -> list[int]:
    known = replicas if isinstance(replicas, range) else sorted(replicas)
    return fleet.draw.sample(known, min(number, len(known)))


def _predicted(fleet: Fleet, request: Request, number: int) -> float:
    replica, costs = fleet.replicas[number], fleet.costs
    wait = (replica.queued + request.prompt) * costs.token
    ranks = replica.ranks
    if number not in fleet.device.get(request.adapter, ()):
        wait += costs.byte["host" if number in fleet.host.get(request.adapter, ()) else "afar"] * request.size
        ranks += request.rank
    running = len(replica.batch)
    more = min(running + 1, fleet.shape.running)
    slower = costs.step(more, ranks) - (costs.step(running, replica.ranks) if running else 0.0)
    return wait + slower * EXPECTED * (1 + running)
