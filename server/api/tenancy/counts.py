"""Counts by tenant that several processes share: each writes its own table, and reads those of all.

A table is a count-min sketch (Cormode and Muthukrishnan, 2005): a tenant has a place in each of a few rows, and its
count is the least of them. Two tenants that share one place count as one there, and hardly ever in all rows.
"""

import hashlib
import os
from collections.abc import MutableSequence
from functools import lru_cache

ROWS, WIDTH = 4, 1 << 12
SLOTS = ROWS * WIDTH  # of each process


class TenantCounts:
    """The counts as one process sees them.

    tables: each process's, one behind the other. key: a secret of the server, so that no client can choose with whom it
    shares places. own: this process's number.
    """

    def __init__(self, tables: MutableSequence[int], processes: int, key: bytes, own: int = 0) -> None:
        self._tables = tables
        self._processes = processes
        self._own = own
        self._places = lru_cache(maxsize=4096)(lambda name: _places(name, key))

    def of(self, name: str) -> int:
        """Return the count of a tenant in all processes."""
        return min(
            sum(self._tables[process * SLOTS + place] for process in range(self._processes))
            for place in self._places(name)
        )

    def add(self, name: str, number: int) -> None:
        """Add `number`, which may be negative, to this process's count of a tenant."""
        for place in self._places(name):
            self._tables[self._own * SLOTS + place] += number

    def forget(self, process: int) -> None:
        """Set the counts of a process that has ended to 0."""
        for slot in range(process * SLOTS, (process + 1) * SLOTS):
            if self._tables[slot]:
                self._tables[slot] = 0


def counts_of_one() -> TenantCounts:
    """Return counts of a server that is one process."""
    return TenantCounts([0] * SLOTS, 1, os.urandom(8))


def _places(name: str, key: bytes) -> tuple[int, ...]:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), key=key, digest_size=4 * ROWS).digest()
    return tuple(row * WIDTH + int.from_bytes(digest[4 * row : 4 * row + 4]) % WIDTH for row in range(ROWS))
