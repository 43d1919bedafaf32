"""The adapters that have a place on the device, least recently used first, and the holds on each."""

from collections import OrderedDict
from dataclasses import dataclass

from ..scheduling.sequence import Held
from .arena_places import ArenaPlace
from .packing import AdapterLayout


@dataclass(eq=False, slots=True)
class Resident:
    """An adapter on the device, or on its way there.

    holders: leases on it. requested: when it was asked for, of time.monotonic(). attached: when it was there; 0 before.
    """

    key: str
    slot: int
    place: ArenaPlace
    layout: AdapterLayout
    requested: float
    holders: int = 0
    attached: float = 0.0


class Residents(OrderedDict[str, Resident]):
    """Residents by key.

    A hold is on a resident and not on its key: one whose load fails leaves while leases hold it, and takes their holds
    along. What comes after it under its key begins with none.
    """

    def hold(self, key: str) -> Resident:
        """Return the resident of a key, with one more hold on it."""
        resident = self[key]
        resident.holders += 1
        self.move_to_end(key)
        return resident

    def let_go(self, resident: Held) -> None:
        """Take a hold back, whether or not the resident is still there."""
        resident.holders -= 1
        if self.get(resident.key) is resident:
            self.move_to_end(resident.key)
