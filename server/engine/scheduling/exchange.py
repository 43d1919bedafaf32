"""Who begins in the place of whom where seats or pages lack: one of a tenant that has less than its share of them.

They go over only where the giver keeps its share and the taker gets no more than its own, so while the same tenants are
there nothing goes back.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property

from .page_pool import PagePool
from .running import RunningSequences
from .sequence import Sequence
from .shares import Shares


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
        self._blocked = blocked

    def takers(self) -> list[str]:
        """Return the tenants that wait and may have one more sequence, if that is not too long for their share."""
        if not self._running.is_full:
            return [tenant for tenant in self._waiting if self._pages.lacks(tenant)]
        lacking = [tenant for tenant in self._waiting if self._seats.lacks(tenant)]
        return lacking if lacking and self._seat_givers else []

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

    @cached_property
    def _pages(self) -> Shares:
        return self._running.page_shares(self._waiting)

    @cached_property
    def _seats(self) -> Shares:
        return self._running.seat_shares(self._waiting)

    @cached_property
    def _seat_givers(self) -> list[Sequence]:
        """Return who gives its seat, if one is needed and can be had."""
        giver = self._seats.giver(self._running.decodes) if self._running.is_full else None
        return [] if giver is None else [giver]

    @property
    def _lets_pass(self) -> bool:
        """Return whether what is free is not due to the one that was blocked."""
        return self._blocked is None or not self._pages.lacks(self._blocked.tenant)

    def _freed_by(self, givers: Iterable[Sequence]) -> int:
        return sum(self._pool.num_held_once(giver.pages) for giver in givers)
