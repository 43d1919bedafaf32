"""Which way of serving a segment costs least. Knows no clock: the figures are measured in `calibration.py`."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

from .factors import Factors
from .products import PLAIN
from .slices import DOTS, ROWWISE, SHORT, SUMS, Way

BAGS = 1.5
"""Bags are chosen only where they cost so many times less: each of their calls, however small, starts all threads, and
one whose core is taken by another process keeps the others waiting for milliseconds."""


class Cost(NamedTuple):
    """Seconds of a product: call + rows · row + elements · (element + rows · term), elements being the factor's."""

    call: float
    row: float = 0.0
    element: float = 0.0
    term: float = 0.0

    def of(self, rows: int, elements: int) -> float:
        return self.call + rows * self.row + elements * (self.element + rows * self.term)


class Costs(NamedTuple):
    """By the name of each way. Those that are missing are never chosen."""

    shrinks: Mapping[str, Cost]
    expands: Mapping[str, Cost]

    def best(self, factors: Factors, rows: int) -> Way:
        """The cheapest for a segment of so many rows that is alone in the step.

        In bags, others would share the calls; but then a row's last bits would depend on who its neighbours are, and
        a lone segment could be served more slowly than by a plain loop.
        """
        return min(self._ways(factors, rows), key=lambda way: self._of(way, factors, rows))

    def _ways(self, factors: Factors, rows: int) -> Iterator[Way]:
        """Bags need rows of B in pieces of a length that is worth a call to memory."""
        short = rows <= SHORT and not factors.gather
        for shrink, expand in product(self.shrinks, self.expands):
            possible = {SUMS: not factors.gather and factors.grain >= 16, ROWWISE: short and shrink == PLAIN}
            if possible.get(expand, shrink != DOTS):
                yield Way(shrink, expand)

    def _of(self, way: Way, factors: Factors, rows: int) -> float:
        shrink, expand = self.shrinks[way.shrink], self.expands[way.expand]
        sizes = [b.numel() for b in factors.b if b.numel()]
        seconds = shrink.of(rows, factors.a.numel())
        if way.expand == SUMS:  # one call for all sites
            return BAGS * (seconds + expand.of(rows, sum(sizes)))
        return seconds + sum(expand.of(rows, size) for size in sizes)
