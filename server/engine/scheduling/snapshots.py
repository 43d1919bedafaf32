"""Which slots of state on the device hold what a model keeps behind which prefixes.

The state of a recurrent model after some tokens cannot be put together of pages. So it is copied at some ends of pages,
and found by the key of the last of them. It goes with that page, or when its slot is needed, least recently used first.
Knows no tensors.
"""

from collections import OrderedDict
from collections.abc import Iterable


class Snapshots:
    """The snapshots of one model. slots: their numbers; none where there is no state, or no prefix caching."""

    def __init__(self, slots: Iterable[int] = ()) -> None:
        self._slots = list(slots)
        self._free = list(self._slots)
        self._kept: OrderedDict[bytes, int] = OrderedDict()
        self._saving: dict[bytes, int] = {}

    def __len__(self) -> int:
        """Return how many can be found."""
        return len(self._kept)

    def __bool__(self) -> bool:
        """Return whether there are any slots."""
        return bool(self._slots)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def use(self, key: bytes) -> int:
        """Return the slot of a snapshot that is there, which is now the last one to be given up."""
        self._kept.move_to_end(key)
        return self._kept[key]

    def take(self, key: bytes) -> int | None:
        """Return a slot to copy a state to; None if it is there, or on its way there, or no slot can be had."""
        if key in self._kept or key in self._saving or not (self._free or self._kept):
            return None
        self._saving[key] = self._free.pop() if self._free else self._kept.popitem(last=False)[1]
        return self._saving[key]

    def keep(self, key: bytes) -> None:
        """Let a snapshot be found, unless all were forgotten: its copy is ahead of whatever the device does next."""
        if key in self._saving:
            self._kept[key] = self._saving.pop(key)

    def drop(self, key: bytes) -> None:
        """Forget a snapshot, if it is there."""
        if key in self._kept:
            self._free.append(self._kept.pop(key))

    def clear(self) -> None:
        """Forget all of them, and those that are on their way."""
        self._free = list(self._slots)
        self._kept.clear()
        self._saving.clear()

    def check_integrity(self) -> None:
        """Raises AssertionError where a slot is lost or doubled."""
        held = sorted([*self._free, *self._kept.values(), *self._saving.values()])
        assert held == sorted(self._slots), f"slots of snapshots are lost or doubled: {held}"
