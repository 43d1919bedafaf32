"""One memory of a replica, and which replicas have an adapter in theirs."""

from collections import OrderedDict, defaultdict

Holders = defaultdict[int, set[int]]
"""From adapters to the replicas that have them."""


class Memory:
    """Adapters by size; the one that was used longest ago gives way, and none that is pinned.

    slots: most adapters. replica, holders: the index that is kept up.
    """

    def __init__(self, capacity: float, slots: int, replica: int, holders: Holders) -> None:
        self._capacity, self._slots = capacity, slots
        self._replica, self._holders = replica, holders
        self._free: OrderedDict[int, float] = OrderedDict()
        self._pinned: dict[int, tuple[float, int]] = {}
        self._used = 0.0

    def __contains__(self, adapter: int) -> bool:
        return adapter in self._free or adapter in self._pinned

    def __len__(self) -> int:
        return len(self._free) + len(self._pinned)

    def pin(self, adapter: int) -> bool:
        """Keep an adapter until it is unpinned as often; return whether it is there."""
        if adapter in self._pinned:
            size, count = self._pinned[adapter]
            self._pinned[adapter] = size, count + 1
        elif adapter in self._free:
            self._pinned[adapter] = self._free.pop(adapter), 1
        else:
            return False
        return True

    def unpin(self, adapter: int) -> bool:
        """Return whether it may go now."""
        size, count = self._pinned.pop(adapter)
        if count > 1:
            self._pinned[adapter] = size, count - 1
            return False
        self._free[adapter] = size
        return True

    def add(self, adapter: int, size: float) -> bool:
        """Bring an adapter, in the place of others, or count it as used; return whether there was room."""
        if adapter in self:
            if adapter in self._free:
                self._free.move_to_end(adapter)
            return True
        if not self._make_room(size):
            return False
        self._free[adapter] = size
        self._used += size
        self._holders[adapter].add(self._replica)
        return True

    def check_integrity(self) -> None:
        """Raise AssertionError where sums or the index are wrong."""
        pinned = sum(size for size, _ in self._pinned.values())
        assert abs(self._used - sum(self._free.values()) - pinned) < 1
        assert self._used <= self._capacity
        assert len(self) <= self._slots
        assert all(self._replica in self._holders[adapter] for adapter in (*self._free, *self._pinned))

    def _make_room(self, size: float) -> bool:
        while self._used + size > self._capacity or len(self) >= self._slots:
            if not self._free:
                return False
            adapter, freed = self._free.popitem(last=False)
            self._used -= freed
            self._holders[adapter].discard(self._replica)
        return True
