"""Which way of serving a segment costs least. Knows no clock: the figures are measured in `calibration.py`."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

from .factors import Factors
from .products import PLAIN
from .slices import DOTS, ROWWISE, SHORT, SUMS, Way

SHARES = 4
"""Segments that are thought to share the calls of bags, which a lone one then pays for: some 10 us a group."""


class Cost(NamedTuple):
    """Seconds of a product: call + rows · row + elements · (element + rows · term), elements being the factor's.

    Of one thread: several share all but the call.
    """

    call: float
    row: float = 0.0
    element: float = 0.0
    term: float = 0.0

    def of(self, rows: int, elements: int) -> float:
        return self.call + rows * self.row + elements * (self.element + rows * self.term)

    def in_bags(self, rows: int, elements: int, threads: int) -> float:
        return self.call / SHARES + (self.of(rows, elements) - self.call) / threads


class Costs(NamedTuple):
    """By the name of each way. Those that are missing are never chosen. threads: that share the work of bags.

    Products of short segments are too small for more than one thread, however many segments there are.
    """

    shrinks: Mapping[str, Cost]
    expands: Mapping[str, Cost]
    threads: int = 1

    def best(self, factors: Factors, rows: int) -> Way:
        """The cheapest for a segment of so many rows.

        Whoever its neighbours are: or else a row's last bits would depend on them.
        """
        return min(self._ways(factors, rows), key=lambda way: self._of(way, factors, rows))

    def _ways(self, factors: Factors, rows: int) -> Iterator[Way]:
        """Bags need rows of B in pieces of a length that is worth a call to memory.

        They are for short segments: products of more rows share the work among threads as well.
        """
        short = rows <= SHORT and not factors.gather
        for shrink, expand in product(self.shrinks, self.expands):
            possible = {SUMS: short and factors.grain >= 16, ROWWISE: short and shrink == PLAIN}
            if possible.get(expand, shrink != DOTS):
                yield Way(shrink, expand)

    def _of(self, way: Way, factors: Factors, rows: int) -> float:
        shrink, expand = self.shrinks[way.shrink], self.expands[way.expand]
        sizes = [b.numel() for b in factors.b if b.numel()]
        elements = factors.a.numel()
        dots = way.shrink == DOTS
        seconds = shrink.in_bags(rows, elements, self.threads) if dots else shrink.of(rows, elements)
        if way.expand == SUMS:  # one call for all sites
            return seconds + expand.in_bags(rows, sum(sizes), self.threads)
        return seconds + sum(expand.of(rows, size) for size in sizes)
