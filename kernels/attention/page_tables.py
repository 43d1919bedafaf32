"""The pages of a step's sequences as one array, kept from step to step, since a decode changes little of it.

A sequence is known by its list of pages, the object itself, for as long as each step has it. Host only.
"""

from collections.abc import Sequence
from operator import is_

import numpy as np

from ..integers import Ints
from .layout import Pages

_ROOM = 16  # pages that a sequence may grow by where it lies
_WASTE = 1024  # pages that may lie unused, beside that room and as many as are used


class PageTables:
    """The pages of all sequences of a step, in one flat array.

    capacity: pages of all sequences of any step. flat: the array, of which the first `end` fields are the step's.
    first, counts: (sequences,) where the pages of each begin, and how many there are.
    """

    def __init__(self, capacity: int) -> None:
        self.flat = np.zeros(capacity, dtype=np.int32)
        self.end = 0
        self.first: Ints = np.zeros(0, dtype=np.int64)
        self.counts: Ints = np.zeros(0, dtype=np.int64)
        self._limits: Ints = np.zeros(0, dtype=np.int64)  # up to where each may grow
        self._lists: Sequence[Pages] = ()

    def update(self, lists: Sequence[Pages]) -> None:
        """Set the lists of a step. A list of the last step may only have grown at its end."""
        counts = np.fromiter(map(len, lists), np.int64, len(lists))
        if len(lists) != len(self._lists) or not all(map(is_, lists, self._lists)):
            self._arrange(lists, counts)
        changed = np.flatnonzero(counts != self.counts)
        if len(changed) and not self._add_one(changed, counts[changed]):
            for index in changed.tolist():
                self._grow(index, int(counts[index]))
        if self.end > 2 * int(counts.sum()) + _ROOM * len(lists) + _WASTE:
            self._rebuild()

    def _arrange(self, lists: Sequence[Pages], counts: Ints) -> None:
        """Keep what goes on where it lies; new sequences begin without any page, at the end."""
        known = {id(pages): index for index, pages in enumerate(self._lists)}
        places = np.fromiter((known.get(id(pages), -1) for pages in lists), np.int64, len(lists))
        fresh = places < 0
        for name in ("first", "counts", "_limits"):
            before = getattr(self, name)
            setattr(self, name, np.where(fresh, 0, before[places] if len(before) else 0))
        self._lists = list(lists)

    def _add_one(self, changed: Ints, counts: Ints) -> bool:
        """Add one page to each where it lies, as decodes need. Returns False, and adds none, if one needs more."""
        ends = self.first[changed] + counts
        if (counts != self.counts[changed] + 1).any() or (ends > self._limits[changed]).any():
            return False
        self.flat[ends - 1] = [self._lists[index][-1] for index in changed.tolist()]
        self.counts[changed] = counts
        return True

    def _grow(self, index: int, count: int) -> None:
        """Copy the new pages of one sequence, to a new place where its own has no room."""
        pages, known = self._lists[index], int(self.counts[index])
        if self.first[index] + count > self._limits[index]:
            if self.end + count > len(self.flat):
                self._rebuild()
                return
            known = 0
            self.first[index] = self.end
            self.end = min(self.end + count + _ROOM, len(self.flat))
            self._limits[index] = self.end
        begin = int(self.first[index])
        self.flat[begin + known : begin + count] = pages[known:count]
        self.counts[index] = count

    def _rebuild(self) -> None:
        """Lay out all sequences anew, with as much room between them as there is."""
        self.counts = np.fromiter(map(len, self._lists), np.int64, len(self._lists))
        total = int(self.counts.sum())
        assert total <= len(self.flat), "a step beyond the limits"
        room = min(_ROOM, (len(self.flat) - total) // max(len(self._lists), 1))
        self._limits = np.cumsum(self.counts + room)
        self.first = self._limits - self.counts - room
        self.end = int(self._limits[-1]) if len(self._limits) else 0
        for pages, begin, count in zip(self._lists, self.first.tolist(), self.counts.tolist(), strict=True):
            self.flat[begin : begin + count] = pages
