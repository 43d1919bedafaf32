"""Numbers that several processes see: each has a few of its own, which it alone writes.

Of each process: its sequences in flight, its open connections, and these by address, in one table where every address
has a slot. Two addresses may meet in a slot, and then count as one.
"""

import hashlib
import ipaddress
import mmap
import os
import tempfile
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import cast

SLOTS = 1 << 16  # for addresses, of each process; the file has holes where none was written
_SIZE = 8  # bytes of one number
_OF_EACH = 2 + SLOTS  # numbers of one process; behind those of all is the key


class ConnectionCounts:
    """Open connections. totals: by process. addresses: each process's table, one behind the other. own: this one.

    key: what nobody else knows, so that nobody can choose whom to meet in a slot.
    """

    def __init__(self, totals: MutableSequence[int], addresses: MutableSequence[int], key: bytes, own: int = 0) -> None:
        self._totals = totals
        self._addresses = addresses
        self._key = key
        self._own = own

    @property
    def total(self) -> int:
        """Of all processes."""
        return sum(self._totals)

    def add(self, number: int) -> None:
        self._totals[self._own] += number

    def of(self, address: str) -> int:
        """From one address, of all processes."""
        slot = self._slot(address)
        return sum(self._addresses[process * SLOTS + slot] for process in range(len(self._totals)))

    def add_from(self, address: str, number: int) -> None:
        self._addresses[self._own * SLOTS + self._slot(address)] += number

    def forget(self, process: int) -> None:
        """One that has ended."""
        self._totals[process] = 0
        for slot in range(process * SLOTS, (process + 1) * SLOTS):
            if self._addresses[slot]:
                self._addresses[slot] = 0

    def _slot(self, address: str) -> int:
        digest = hashlib.blake2b(_network(address), key=self._key, digest_size=_SIZE).digest()
        return int.from_bytes(digest) % SLOTS


def counts_of_one() -> ConnectionCounts:
    """Where there is no other process."""
    return ConnectionCounts([0], [0] * SLOTS, os.urandom(_SIZE))


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


def _network(address: str) -> bytes:
    """Of IPv6 the network: whoever has one address of it has all of them."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address.encode()
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.packed
    return ip.ipv4_mapped.packed if ip.ipv4_mapped else ip.packed[:8]
