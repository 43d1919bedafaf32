"""Open connections, in all and by address, of each process in a table that all of them see and it alone writes.

Every address has a slot of the table. Two addresses may meet in a slot, and then count as one.
"""

import hashlib
import ipaddress
import os
from collections.abc import MutableSequence

SLOTS = 1 << 16  # for addresses, of each process
KEY_BYTES = 8


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
        digest = hashlib.blake2b(_network(address), key=self._key, digest_size=KEY_BYTES).digest()
        return int.from_bytes(digest) % SLOTS


def counts_of_one() -> ConnectionCounts:
    """Where there is no other process."""
    return ConnectionCounts([0], [0] * SLOTS, os.urandom(KEY_BYTES))


def _network(address: str) -> bytes:
    """Of IPv6 the network: whoever has one address of it has all of them."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address.encode()
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.packed
    return ip.ipv4_mapped.packed if ip.ipv4_mapped else ip.packed[:8]
