"""Counts in a memory-mapped file that all API processes read. Each process alone writes its own.

They are, for each process: its sequences in flight, its open connections, its open connections by address, and its
sequences by tenant. Behind those of all processes lie a key, and buckets of tokens, which all write under a lock.
"""

import mmap
import os
import tempfile
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import cast

from ..http.connection_counts import KEY_BYTES, SLOTS, ConnectionCounts
from ..tenancy.buckets import BUCKETS, FIELDS, TokenBuckets
from ..tenancy.counts import SLOTS as TENANTS
from ..tenancy.counts import TenantCounts

_SIZE = KEY_BYTES  # bytes of one count
_PER_PROCESS = 2 + SLOTS + TENANTS  # counts; the file is sparse
_BEHIND = 1 + FIELDS * BUCKETS  # the key and the buckets


@contextmanager
def shared_counts(processes: int) -> Iterator[int]:
    """Make a file without a name for the counts of so many processes, all 0; yield its descriptor, for the views."""
    with tempfile.TemporaryFile() as file:
        file.seek(_SIZE * _PER_PROCESS * processes)
        file.write(os.urandom(_SIZE))
        file.truncate(_SIZE * (_PER_PROCESS * processes + _BEHIND))
        file.flush()
        yield file.fileno()


def view(descriptor: int) -> MutableSequence[int]:
    """Return the sequences in flight by process, as a view of the file."""
    numbers, processes = _numbers(descriptor)
    return cast(MutableSequence[int], numbers[:processes])


def view_of_connections(descriptor: int, own: int = 0) -> ConnectionCounts:
    """Return the open connections as a view of the file that writes those of process `own`."""
    numbers, processes = _numbers(descriptor)
    totals = numbers[processes : 2 * processes]
    addresses = numbers[2 * processes : (2 + SLOTS) * processes]
    key = _key(numbers, processes)
    return ConnectionCounts(cast(MutableSequence[int], totals), cast(MutableSequence[int], addresses), key, own)


def view_of_tenants(descriptor: int, own: int = 0) -> TenantCounts:
    """Return the sequences in flight by tenant as a view of the file that writes those of process `own`."""
    numbers, processes = _numbers(descriptor)
    tables = numbers[(2 + SLOTS) * processes : _PER_PROCESS * processes]
    return TenantCounts(cast(MutableSequence[int], tables), processes, _key(numbers, processes), own)


def view_of_buckets(descriptor: int) -> TokenBuckets:
    """Return the buckets of tokens as a view of the file."""
    numbers, processes = _numbers(descriptor)
    words = numbers[_PER_PROCESS * processes + 1 :].cast("B").cast("d")
    return TokenBuckets(cast(MutableSequence[float], words), descriptor)


def _key(numbers: memoryview, processes: int) -> bytes:
    return numbers[_PER_PROCESS * processes :][:1].tobytes()


def _numbers(descriptor: int) -> tuple[memoryview, int]:
    """Return the file as numbers, and how many processes they are of."""
    numbers = memoryview(mmap.mmap(descriptor, 0)).cast("q")
    return numbers, (len(numbers) - _BEHIND) // _PER_PROCESS
