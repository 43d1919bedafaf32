"""Counts of open connections, in all and by address. Each process writes its own, and reads those of all.

Every address has a slot in a table of counts. Two addresses may share a slot, and then count as one.
"""

import hashlib
import ipaddress
import os
from collections.abc import MutableSequence

SLOTS = 1 << 16  # for addresses, of each process
KEY_BYTES = 8


class ConnectionCounts:
    """The counts as one process sees them.

    totals: open connections by process. addresses: each process's table, one behind the other. own: this process's
    number. key: a secret of the server, so that no client can choose with whom it shares a slot.
    """

    def __init__(self, totals: MutableSequence[int], addresses: MutableSequence[int], key: bytes, own: int = 0) -> None:
        self._totals = totals
        self._addresses = addresses
        self._key = key
        self._own = own

    @property
    def total(self) -> int:
        """Return the number of open connections of all processes."""
        return sum(self._totals)

    def add(self, number: int) -> None:
        """Add `number`, which may be negative, to this process's total."""
        self._totals[self._own] += number

    def of(self, address: str) -> int:
        """Return the number of open connections from one address, to all processes."""
        slot = self._slot(address)
        return sum(self._addresses[process * SLOTS + slot] for process in range(len(self._totals)))

    def add_from(self, address: str, number: int) -> None:
        """Add `number`, which may be negative, to this process's count of an address."""
        self._addresses[self._own * SLOTS + self._slot(address)] += number

    def forget(self, process: int) -> None:
        """Set the counts of a process that has ended to 0."""
        self._totals[process] = 0
        for slot in range(process * SLOTS, (process + 1) * SLOTS):
            if self._addresses[slot]:
                self._addresses[slot] = 0

    def _slot(self, address: str) -> int:
        digest = hashlib.blake2b(_network(address), key=self._key, digest_size=KEY_BYTES).digest()
        return int.from_bytes(digest) % SLOTS


def counts_of_one() -> ConnectionCounts:
    """Return counts of a server that is one process."""
    return ConnectionCounts([0], [0] * SLOTS, os.urandom(KEY_BYTES))


def _network(address: str) -> bytes:
    """Return what stands for an address: of IPv6 the network of 64 bits, as its owner has all addresses of it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address.encode()
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.packed
    return ip.ipv4_mapped.packed if ip.ipv4_mapped else ip.packed[:8]
