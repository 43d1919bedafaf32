"""Which way to serve a segment costs least. Knows no clock: `calibration.py` measures the figures."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple

from .factors import Factors
from .slices import LOOP, SHORT, Way

FEW = 16
"""Rows up to which costs are those of few rows: libraries are quicker by the row where there are many."""
SHARES = 4
"""Segments that are assumed to share the loop's call; a lone one costs some 5 us a group more."""


class ProductCost(NamedTuple):
    """Seconds of a product: call + rows · row + elements · (element + rows · term), elements being the factor's.

    For one thread: several share all but the call.
    """

    call: float
    row: float = 0.0
    element: float = 0.0
    term: float = 0.0

    def of(self, rows: int, elements: int) -> float:
        return self.call + rows * self.row + elements * (self.element + rows * self.term)

    def shared(self, rows: int, elements: int, threads: int) -> float:
        return self.call / SHARES + (self.of(rows, elements) - self.call) / threads


class Costs(NamedTuple):
    """Costs by the name of each way. Ways that are missing are never chosen.

    loop: of the compiled loop, whose elements are those of all factors; None where there is none. threads: that share
    the loop's work. Products of short segments are too small for more than one, however many segments there are. many:
    of segments of more than FEW rows, if they differ.
    """

    shrinks: Mapping[str, ProductCost]
    expands: Mapping[str, ProductCost]
    loop: ProductCost | None = None
    threads: int = 1
    many: "Costs | None" = None

    def best(self, factors: Factors, rows: int) -> Way:
        """Return the cheapest way for a segment of so many rows.

        The choice ignores its neighbours: otherwise a row's last bits would depend on them.
        """
        costs = self.many if self.many is not None and rows > FEW else self
        return min(costs._ways(), key=lambda way: costs._of(way, factors, rows))

    def _ways(self) -> Iterator[Way]:
        yield from (Way(*names) for names in product(self.shrinks, self.expands))
        if self.loop is not None:
            yield Way(LOOP, LOOP)

    def _of(self, way: Way, factors: Factors, rows: int) -> float:
        if way.shrink == LOOP:
            return self._of_loop(factors, rows)
        shrink, expand = self.shrinks[way.shrink], self.expands[way.expand]
        sizes = [b.numel() for b in factors.b if b.numel()]
        return shrink.of(rows, factors.a.numel()) + sum(expand.of(rows, size) for size in sizes)

    def _of_loop(self, factors: Factors, rows: int) -> float:
        """Return the loop's cost: short segments share its call and threads; long ones have all threads anyway."""
        assert self.loop is not None
        read = rows * factors.rank if factors.gather else factors.a.numel()
        elements = read + sum(b.numel() for b in factors.b)
        return self.loop.shared(rows, elements, self.threads) if rows <= SHORT else self.loop.of(rows, elements)
