"""A segment of the step and how it is served; on its own, by one shrink for the group and one expand for each site."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .factors import Factors
from .products import EXPANDS, SHRINKS

LOOP = "loop"
SHORT = 4
"""Rows up to which a segment is short: then calls cost more than what they compute."""


class Way(NamedTuple):
    """How a segment is served: by two products of its own, PLAIN or WIDE, or by LOOP for both, in the compiled loop."""

    shrink: str
    expand: str


class Slice(NamedTuple):
    """Rows [start, end) of the step that go through `factors`, with a delta that is multiplied by `weight`."""

    factors: Factors
    weight: float
    start: int
    end: int
    way: Way

    def shrink(self, x: torch.Tensor) -> torch.Tensor:
        """Return h, (end - start, sum of ranks), weighted; in the arena's dtype, or in fp32 where the way is wide."""
        rows, a = self._rows(x), self.factors.a
        h = a.index_select(0, rows) if self.factors.gather else SHRINKS[self.way.shrink](rows, a)
        return h if self.weight == 1 else h.mul_(self.weight)

    def add_(self, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        """Add the deltas of all sites to their outputs."""
        h, expand_ = self.shrink(x), EXPANDS[self.way.expand]
        parts = h.split_with_sizes(self.factors.ranks, 1) if len(outputs) > 1 else (h,)
        for part, b, rank, y in zip(parts, self.factors.b, self.factors.ranks, outputs, strict=True):
            if rank and y is not None:
                expand_(self._rows(y), part, b)

    def _rows(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the rows, without a view where they are all, since a view costs as much as a small product."""
        return whole if self.end - self.start == whole.shape[0] else whole[self.start : self.end]
