"""Which replica runs a sequence: one that has its adapters in memory, unless it has too much to do already.

Pure functions of what is known of the replicas. Knows digests and numbers; must not know how they are come by, nor
what a replica is made of: the simulation in `benchmarks/scale` runs the same code.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Literal

Tier = Literal["device", "host", "disk"]


@dataclass(frozen=True)
class ReplicaState:
    """What is known of one replica.

    name: the same for as long as it lives. sequences: that it was given and that have not ended. device, host: digests
    of the adapters that it has there.
    """

    name: str
    sequences: int
    device: Collection[str] = ()
    host: Collection[str] = ()


@dataclass(frozen=True)
class Bound:
    """How far a replica may be over the mean, so that an adapter that is asked for by many spreads.

    excess: share of the mean. free: sequences that any replica may have whatever the others have: a batch so small
    takes hardly longer than a smaller one.
    """

    excess: float = 0.25
    free: int = 8

    def most(self, replicas: Sequence[ReplicaState]) -> int:
        """Return the sequences that a replica may have once one more is given out."""
        total = sum(replica.sequences for replica in replicas) + 1
        return max(self.free, math.ceil((1 + self.excess) * total / len(replicas)))


@dataclass(frozen=True)
class Choice:
    """A replica by name, and where it has the adapters: the slowest of their tiers."""

    name: str
    tier: Tier


DEFAULT_BOUND = Bound()


def choose(
    replicas: Sequence[ReplicaState], digests: Collection[str], draw: Random, bound: Bound = DEFAULT_BOUND
) -> Choice:
    """Choose one of the replicas, of which there must be one at least, for a sequence with these adapters.

    Of the replicas below the bound, the least busy of two: of those that have all adapters on the device, else on the
    host, else of the two homes that the adapters have by their digests. The base alone is at home everywhere.
    """
    most = bound.most(replicas)
    # One is below at least: were all at the bound, they would have more than there are.
    below = [replica for replica in replicas if replica.sequences < most]
    for tier in ("device", "host"):
        if having := [replica for replica in below if _has(replica, digests, tier)]:
            return Choice(_less_busy(_two(having, draw)).name, tier)
    return Choice(_less_busy(homes(below, digests)[:2]).name, "disk")


def homes(replicas: Sequence[ReplicaState], digests: Collection[str]) -> list[ReplicaState]:
    """Return the replicas in the order in which they are home to the adapters.

    By rendezvous hashing: what was evicted comes back where it was, whoever chooses chooses alike, and of a replica
    that goes only its own adapters move.
    """
    key = "\n".join(sorted(digests)).encode()

    def score(replica: ReplicaState) -> bytes:
        return blake2b(key, key=replica.name.encode()[:64], digest_size=8).digest()

    return sorted(replicas, key=score, reverse=True)


def _has(replica: ReplicaState, digests: Collection[str], tier: Tier) -> bool:
    if tier == "device":
        return all(digest in replica.device for digest in digests)
    return all(digest in replica.device or digest in replica.host for digest in digests)


def _two(replicas: Sequence[ReplicaState], draw: Random) -> Sequence[ReplicaState]:
    """Return two of the replicas, in any order; all where there are no more."""
    return draw.sample(replicas, min(2, len(replicas)))


def _less_busy(replicas: Sequence[ReplicaState]) -> ReplicaState:
    return min(replicas, key=lambda replica: replica.sequences)
