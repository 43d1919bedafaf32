"""Where the columns of each slot are, group by group. Host only, no torch.

Ranges begin at multiples of GRAIN, so that rows of h can be written in wide stores. As a product is as wide as the last
column that its step needs, columns lie as far to the left as they can: a slot stays where it is from step to step
unless that makes the step's products wider than necessary by more than SLACK.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from ...integers import round_up
from .choice import Needs

GRAIN = 8  # columns
SLACK = 64  # columns: 1.6% of a product that is 4,096 deep


class ColumnPlaces:
    """The allocation of columns to slots. columns: of each group."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._starts: OrderedDict[int, dict[int, int]] = OrderedDict()  # by slot and group; least recently used first
        self._needs: dict[int, Needs] = {}

    def place(self, needs: Mapping[int, Needs]) -> list[int]:
        """Give these slots columns, which must fit all of them. Returns those that had none, or had to move.

        Other slots keep theirs until these need them: the least recently used goes first.
        """
        limits = {group: min(total + SLACK, self.columns) for group, total in _totals(needs.values()).items()}
        for slot in needs:
            if slot in self._starts and not self._within(slot, limits):
                self.forget(slot)
        missing = [slot for slot in needs if slot not in self._starts]
        if not all(self._find_room(slot, needs, limits) for slot in missing):
            missing = self._place_anew(needs)
        for slot in needs:
            self._starts.move_to_end(slot)
        return missing

    def forget(self, slot: int) -> None:
        """Free the columns of a slot, if it has any."""
        self._starts.pop(slot, None)
        self._needs.pop(slot, None)

    @property
    def slots(self) -> frozenset[int]:
        """Return the slots that have columns."""
        return frozenset(self._starts)

    def start(self, slot: int, group: int) -> int:
        """Return the first column of a slot in a group."""
        return self._starts[slot][group]

    def end(self, group: int, slots: Sequence[int]) -> int:
        """Return how many columns of the group lead up to the last one of these slots; 0 without any."""
        places = ((self._starts[slot], self._needs[slot]) for slot in slots)
        return max((starts[group] + needs[group] for starts, needs in places if group in starts), default=0)

    def _within(self, slot: int, limits: Needs) -> bool:
        return all(start + self._needs[slot][group] <= limits[group] for group, start in self._starts[slot].items())

    def _find_room(self, slot: int, needs: Mapping[int, Needs], limits: Needs) -> bool:
        """Find columns for a slot, evicting others. Returns False where the free columns lie in pieces."""
        while (found := self._gaps(needs[slot], limits)) is None:
            victim = next((other for other in self._starts if other not in needs), None)
            if victim is None:
                return False
            self.forget(victim)
        self._starts[slot], self._needs[slot] = found, needs[slot]
        return True

    def _gaps(self, wanted: Needs, limits: Needs) -> dict[int, int] | None:
        found = {group: self._first_gap(group, count, limits[group]) for group, count in wanted.items()}
        there = {group: start for group, start in found.items() if start is not None}
        return there if len(there) == len(found) else None

    def _first_gap(self, group: int, count: int, limit: int) -> int | None:
        position = 0
        for start, size in self._ranges(group):
            if start - position >= count:
                break
            position = start + size
        return position if position + count <= limit else None

    def _ranges(self, group: int) -> list[tuple[int, int]]:
        held = ((starts, self._needs[slot]) for slot, starts in self._starts.items())
        return sorted((starts[group], needs[group]) for starts, needs in held if group in starts)

    def _place_anew(self, needs: Mapping[int, Needs]) -> list[int]:
        """Place these slots one after the other from the first column on, and evict all others."""
        self._starts.clear()
        self._needs.clear()
        for slot, wanted in needs.items():
            starts = {group: self.end(group, [*self._starts]) for group in wanted}
            self._starts[slot], self._needs[slot] = starts, wanted
        return [*needs]

    def check_integrity(self) -> None:
        """Raises AssertionError where two slots have a column in common, or one lies beyond the group's."""
        for group in {group for starts in self._starts.values() for group in starts}:
            position = 0
            for start, size in self._ranges(group):
                assert start >= position, f"columns {start} to {position} of group {group} belong to two slots"
                assert start % GRAIN == 0, f"columns of group {group} begin at {start}"
                position = start + size
            assert position <= self.columns, f"group {group} has {self.columns} columns, and {position} are in use"


def needed(rank: int) -> int:
    """Return how many columns so many ranks take."""
    return round_up(rank, GRAIN)


def _totals(needs: Iterable[Needs]) -> dict[int, int]:
    totals: dict[int, int] = {}
    for wanted in needs:
        for group, count in wanted.items():
            totals[group] = totals.get(group, 0) + count
    return totals
