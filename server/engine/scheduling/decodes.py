"""The sequences that decode: each runs one token in every step, until it is full, ends or is preempted.

They are kept from step to step, in the order of their adapters. From numbers in arrays a step finds those for which
something else than one more token is due: a page, or their end.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator

import numpy as np

from .batch import Batch, Ints, Lineup
from .sequence import UNKNOWN, Payer, Sequence


class Decodes:
    """The sequences that decode. most: sequences at once. page_size: tokens of a page."""

    def __init__(self, most: int, page_size: int) -> None:
        self.payers: Counter[Payer] = Counter()  # sequences of each
        self.cost = 0  # of a token of all
        self._page_size = page_size
        self._sequences: list[Sequence] = []
        self._slots: list[tuple[int, ...]] = []  # of each, which they are sorted by
        self._numbers = np.zeros((3, most), np.int64)  # a column for each: tokens, tokens that its pages hold, limit
        self._lineup: Lineup | None = None  # of the last batch, while the same go on

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._sequences

    def add(self, sequence: Sequence) -> None:
        """Add a sequence all of whose tokens but the last have been run. It has pages for those."""
        place, end = bisect_right(self._slots, sequence.slots), len(self._sequences)
        self._sequences.insert(place, sequence)
        self._slots.insert(place, sequence.slots)
        self._numbers[:, place + 1 : end + 1] = self._numbers[:, place:end]
        self._numbers[:, place] = len(sequence.tokens), len(sequence.pages) * self._page_size, sequence.limit
        self.payers[sequence.payer] += 1
        self.cost += sequence.cost
        self._lineup = None

    def remove(self, sequence: Sequence) -> None:
        self._take_out(self._sequences.index(sequence))

    def turn_pages(self) -> list[Sequence]:
        """Return the sequences whose next token begins a page, oldest first. The caller gives them their pages."""
        tokens, held, _ = self._columns
        due = np.flatnonzero(tokens > held)
        held[due] += self._page_size
        return sorted((self._sequences[place] for place in due.tolist()), key=lambda sequence: sequence.arrival)

    def batch(self) -> Batch:
        """Return the next step of all of them."""
        if self._lineup is None:
            self._lineup = Lineup(self._sequences)
        return Batch.of_decodes(self._lineup, self._columns[0].copy())

    def launched(self) -> list[Sequence]:
        """Note that a step of all is under way. Those whose last token it samples leave.

        Returns the sequences of which the step fills a page.
        """
        for sequence in self._sequences:
            sequence.num_computed += 1
            sequence.tokens.append(UNKNOWN)
        tokens, _, limit = self._columns
        filled = [self._sequences[place] for place in np.flatnonzero(tokens % self._page_size == 0).tolist()]
        tokens += 1
        for place in np.flatnonzero(tokens >= limit)[::-1].tolist():
            self._take_out(place)
        return filled

    @property
    def _columns(self) -> Ints:
        return self._numbers[:, : len(self._sequences)]

    def _take_out(self, place: int) -> None:
        sequence, end = self._sequences.pop(place), len(self._slots)
        del self._slots[place]
        self._numbers[:, place : end - 1] = self._numbers[:, place + 1 : end]
        self._count_off(sequence)
        self._lineup = None

    def _count_off(self, sequence: Sequence) -> None:
        self.cost -= sequence.cost
        self.payers[sequence.payer] -= 1
        if not self.payers[sequence.payer]:
            del self.payers[sequence.payer]

    def check_integrity(self) -> None:
        """Raises AssertionError where the numbers are not those of the sequences."""
        assert self._slots == sorted(sequence.slots for sequence in self._sequences), "adapters are not kept together"
        numbers = [[len(s.tokens), len(s.pages) * self._page_size, s.limit] for s in self._sequences]
        assert self._columns.T.tolist() == numbers, "what is noted of sequences that decode is not so"
        assert self.cost == sum(sequence.cost for sequence in self._sequences), "the cost of a step is another"
        assert self.payers == Counter(sequence.payer for sequence in self._sequences), "payers are miscounted"
