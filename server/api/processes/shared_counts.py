"""A file in memory of numbers that several processes see: each has a few of its own, which it alone writes.

Of each process: its sequences in flight, its open connections, and these by address.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import cast

from ..http.connection_counts import KEY_BYTES, SLOTS, ConnectionCounts

_SIZE = KEY_BYTES  # of one number
_OF_EACH = 2 + SLOTS  # numbers of one process, where holes are none was written; behind those of all is the key


@contextmanager
def shared_counts(processes: int) -> Iterator[int]:
    """The descriptor of a file of zeros, to be looked at with the views. It has no name."""
    with tempfile.TemporaryFile() as file:
        file.seek(_SIZE * _OF_EACH * processes)
        file.write(os.urandom(_SIZE))
        file.flush()
        yield file.fileno()


def view(descriptor: int) -> MutableSequence[int]:
    """The sequences in flight, by process, as long as the view lives."""
    numbers = _numbers(descriptor)
    return cast(MutableSequence[int], numbers[: len(numbers) // _OF_EACH])


def view_of_connections(descriptor: int, own: int = 0) -> ConnectionCounts:
    """The open connections, as process `own` sees them."""
    numbers = _numbers(descriptor)
    processes = len(numbers) // _OF_EACH
    totals, addresses = numbers[processes : 2 * processes], numbers[2 * processes : -1]
    key = numbers[-1:].tobytes()
    return ConnectionCounts(cast(MutableSequence[int], totals), cast(MutableSequence[int], addresses), key, own)


def _numbers(descriptor: int) -> memoryview:
    return memoryview(mmap.mmap(descriptor, 0)).cast("q")
