"""Whose seats are taken back while others wait: a tenant's that has more than its share, for one that has less.

A tenant's share is of all seats, by its weight among the tenants that run or wait, and one seat at least. A seat goes
over only where its giver keeps its share and its taker gets no more than its own, so while the same tenants are there
no seat goes back. What is taken back is computed again later; each time it must first have run for twice as long as
the time before, so of a sequence of n tokens that happens at most log2(n / LEAST_TURN) times.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from .sequence import Sequence

LEAST_TURN = 16  # tokens that a sequence gets on a seat before that may be taken back for the first time


class SeatShares:
    """The shares of all seats at one moment.

    running: sequences that have a seat. waiting: the weight of each tenant that waits.
    """

    def __init__(self, num_seats: int, running: Iterable[Sequence], waiting: Mapping[str, float]) -> None:
        weights = {**waiting}
        self._taken: Counter[str] = Counter()
        for sequence in running:
            self._taken[sequence.tenant] += 1
            weights.setdefault(sequence.tenant, sequence.weight)
        total = sum(weights.values())
        self._shares = {tenant: max(num_seats * weight / total, 1.0) for tenant, weight in weights.items()}

    def lack(self, tenant: str) -> bool:
        """Return whether one more seat is within a tenant's share."""
        return self._taken[tenant] + 1 <= self._shares[tenant]

    def exceed(self, tenant: str) -> bool:
        """Return whether a tenant has its share without one of its seats."""
        return self._taken[tenant] - 1 >= self._shares[tenant]

    def giver(self, decoding: Iterable[Sequence]) -> Sequence | None:
        """Return the sequence whose seat is to be taken back: the newest of who is furthest above its share."""
        able = [sequence for sequence in decoding if self.exceed(sequence.tenant) and _has_had_its_turn(sequence)]
        return max(able, key=lambda sequence: (self._excess(sequence.tenant), sequence.arrival), default=None)

    def _excess(self, tenant: str) -> float:
        return self._taken[tenant] / self._shares[tenant]


def _has_had_its_turn(sequence: Sequence) -> bool:
    """Return whether it has run long enough, and is not about to leave by itself."""
    ran = len(sequence.tokens) - sequence.turn_from
    return ran >= LEAST_TURN << sequence.turns_lost and sequence.limit - len(sequence.tokens) > LEAST_TURN
