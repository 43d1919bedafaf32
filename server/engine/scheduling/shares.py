"""Each tenant's share of the seats, or of the pages: who has more, and who less.

A tenant's share is of all there is, by its weight among the tenants that run or wait. What is taken back from one that
has more is computed again later; each time it must first have run for twice as long as the time before, so of a
sequence of n tokens that happens at most log2(n / LEAST_TURN) times.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from .sequence import Sequence

LEAST_TURN = 16  # tokens that a sequence gets before its place may be taken back for the first time


class Shares:
    """The shares of all seats, or of all pages, at one moment.

    total: how much there is; a share is 1 at least. running: sequences that hold some of it, each `held(sequence)`.
    waiting: the weight of each tenant that waits.
    """

    def __init__(
        self,
        total: int,
        running: Iterable[Sequence],
        waiting: Mapping[str, float],
        held: Callable[[Sequence], int] = lambda _: 1,
    ) -> None:
        weights = {**waiting}
        self._held = held
        self._taken: Counter[str] = Counter()
        for sequence in running:
            self._taken[sequence.tenant] += held(sequence)
            weights.setdefault(sequence.tenant, sequence.weight)
        whole = sum(weights.values())
        self._shares = {tenant: max(total * weight / whole, 1.0) for tenant, weight in weights.items()}

    def lacks(self, tenant: str, need: int = 1) -> bool:
        """Return whether so much more is within a tenant's share."""
        return self._taken[tenant] + need <= self._shares[tenant]

    def exceeds(self, sequence: Sequence) -> bool:
        """Return whether its tenant has its share without what this one holds."""
        return self._taken[sequence.tenant] - self._held(sequence) >= self._shares[sequence.tenant]

    def giver(self, decoding: Iterable[Sequence]) -> Sequence | None:
        """Return the sequence whose place is to be taken back: the newest of who is furthest above its share."""
        able = (sequence for sequence in decoding if _has_had_its_turn(sequence))
        return self.furthest(sequence for sequence in able if self.exceeds(sequence))

    def without(self, gone: Iterable[Sequence]) -> "Shares":
        """Return what the same shares are when some of the running ones have given up what they held."""
        after = copy.copy(self)
        after._taken = self._taken.copy()
        for sequence in gone:
            after._taken[sequence.tenant] -= self._held(sequence)
        return after

    def furthest(self, sequences: Iterable[Sequence]) -> Sequence | None:
        """Return the newest one of the tenant that has the most above its share; None if none has more than that."""
        above = [sequence for sequence in sequences if self._excess(sequence) > 1]
        return max(above, key=lambda sequence: (self._excess(sequence), sequence.arrival), default=None)

    def _excess(self, sequence: Sequence) -> float:
        return self._taken[sequence.tenant] / self._shares[sequence.tenant]


def _has_had_its_turn(sequence: Sequence) -> bool:
    """Return whether it has run long enough, and is not about to leave by itself."""
    ran = len(sequence.tokens) - sequence.turn_from
    return ran >= LEAST_TURN << sequence.turns_lost and sequence.limit - len(sequence.tokens) > LEAST_TURN
