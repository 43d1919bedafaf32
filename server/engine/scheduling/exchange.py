"""Who begins in the place of whom where seats or pages lack: one of a tenant that has less than its share of them.

They go over only where the giver keeps its share and the taker gets no more than its own, so while the same tenants are
there nothing goes back.
"""

from collections.abc import Iterable, Mapping

from .page_pool import PagePool
from .running import RunningSequences
from .sequence import Sequence


class Exchange:
    """The seats and pages of all tenants at one moment.

    waiting: the weight of each tenant that waits. blocked: a sequence whose turn it was, and that found too few pages.
    """

    def __init__(
        self, pool: PagePool, running: RunningSequences, waiting: Mapping[str, float], blocked: Sequence | None
    ) -> None:
        self._pool = pool
        self._running = running
        self._waiting = waiting
        self._seats = running.seat_shares(waiting)
        self._pages = running.page_shares(waiting)
        self._lets_pass = blocked is None or not self._pages.lacks(blocked.tenant)
        seat = self._seats.giver(running.decodes) if running.is_full else None
        self._seat_givers = [seat] if seat is not None else []

    def takers(self) -> list[str]:
        """Return the tenants that wait and may have one more sequence, if that is not too long for their share."""
        if not self._running.is_full:
            return [tenant for tenant in self._waiting if self._pages.lacks(tenant)]
        return [tenant for tenant in self._waiting if self._seat_givers and self._seats.lacks(tenant)]

    def givers(self, sequence: Sequence) -> list[Sequence] | None:
        """Return whose places a sequence of a taker is to have, with pages for all of its tokens.

        That is nobody's where what is free is enough. Returns None if it has to wait.
        """
        givers = [*self._seat_givers]
        needed = self._running.num_pages(len(sequence.tokens))
        missing = needed - self._pool.num_free - self._freed_by(givers)
        if givers and missing <= 0:
            return givers
        if not self._pages.lacks(sequence.tenant, needed) or (missing <= 0 and not self._lets_pass):
            return None
        while missing > 0:
            others = (other for other in self._running.decodes if other not in givers)
            giver = self._pages.without(givers).giver(others)
            if giver is None:
                return None
            givers.append(giver)
            missing -= self._freed_by([giver])
        return givers

    def _freed_by(self, givers: Iterable[Sequence]) -> int:
        return sum(self._pool.num_held_once(giver.pages) for giver in givers)
