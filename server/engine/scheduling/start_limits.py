"""Which sequences have waited longer than they may, found without a look at all that wait."""

import heapq

from .sequence import Sequence

LEAST_COMPACTED = 64  # entries below which nothing is gained by dropping those that are done with


class StartLimits:
    """The times by which sequences must have begun. Sequences without one cost nothing."""

    def __init__(self) -> None:
        self.num_expired = 0
        self._due: list[tuple[float, int, Sequence]] = []  # a heap; has some that have begun or ended since
        self._compacted_at = LEAST_COMPACTED  # entries; twice those that were left the last time

    def add(self, sequence: Sequence) -> None:
        if sequence.queue_timeout is not None:
            heapq.heappush(self._due, (sequence.latest_start, sequence.arrival, sequence))
            if len(self._due) > self._compacted_at:
                self._compact()

    def take_expired(self, now: float) -> list[Sequence]:
        """Return the sequences that wait and should have begun. now: of time.monotonic(). Each is returned once."""
        expired = []
        while self._due and self._due[0][0] <= now:
            _, _, sequence = heapq.heappop(self._due)
            if _waits(sequence):
                expired.append(sequence)
        self.num_expired += len(expired)
        return expired

    def _compact(self) -> None:
        """Drop those that wait no more, which would keep their prompts in memory until their time."""
        self._due = [entry for entry in self._due if _waits(entry[2])]
        heapq.heapify(self._due)
        self._compacted_at = max(2 * len(self._due), LEAST_COMPACTED)


def _waits(sequence: Sequence) -> bool:
    return not (sequence.has_begun or sequence.is_over)
