"""Counts in a memory-mapped file that all API processes read. Each process alone writes its own.

They are, for each process: its sequences in flight, its open connections, and its open connections by address.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import cast

from ..http.connection_counts import KEY_BYTES, SLOTS, ConnectionCounts

_SIZE = KEY_BYTES  # bytes of one count
_PER_PROCESS = 2 + SLOTS  # counts; the file is sparse. Behind those of all processes is the key


@contextmanager
def shared_counts(processes: int) -> Iterator[int]:
    """Make a file without a name for the counts of so many processes, all 0; yield its descriptor, for the views."""
    with tempfile.TemporaryFile() as file:
        file.seek(_SIZE * _PER_PROCESS * processes)
        file.write(os.urandom(_SIZE))
        file.flush()
        yield file.fileno()


def view(descriptor: int) -> MutableSequence[int]:
    """Return the sequences in flight by process, as a view of the file."""
    numbers = _numbers(descriptor)
    return cast(MutableSequence[int], numbers[: len(numbers) // _PER_PROCESS])


def view_of_connections(descriptor: int, own: int = 0) -> ConnectionCounts:
    """Return the open connections as a view of the file that writes those of process `own`."""
    numbers = _numbers(descriptor)
    processes = len(numbers) // _PER_PROCESS
    totals, addresses = numbers[processes : 2 * processes], numbers[2 * processes : -1]
    key = numbers[-1:].tobytes()
    return ConnectionCounts(cast(MutableSequence[int], totals), cast(MutableSequence[int], addresses), key, own)


def _numbers(descriptor: int) -> memoryview:
    return memoryview(mmap.mmap(descriptor, 0)).cast("q")
