"""The places of adapters in the arena: the range of each, and those of the pieces that several have in common."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch

from .packing import Blob
from .ranges import RangeAllocator
from .shared_ranges import SharedRanges

MakeRoom = Callable[[int], int | None]
"""From a number of elements to the start of a range that is as large; None where there is no room."""


class ArenaPlace(NamedTuple):
    """One adapter's place. start, size: its range, in elements. shared: keys of the pieces beside it."""

    start: int
    size: int
    shared: tuple[str, ...]


class ArenaPlaces:
    """The places in one arena. ranges: of the arena."""

    def __init__(self, ranges: RangeAllocator) -> None:
        self._ranges = ranges
        self._shared = SharedRanges(ranges)

    @property
    def capacity(self) -> int:
        return self._ranges.capacity

    @property
    def num_used(self) -> int:
        """Return the elements of the arena in use."""
        return self._ranges.num_used

    def allocate(self, size: int, *, at_end: bool) -> int | None:
        """Return the start of a free range; None if none is large enough. at_end: as far back as there is one."""
        return self._ranges.allocate(size, at_end=at_end)

    def put(self, blob: Blob, make_room: MakeRoom) -> tuple[ArenaPlace, list[tuple[torch.Tensor, int]]] | None:
        """Take ranges for a blob and for those of its pieces that are not there. Returns its place and what to copy.

        None, and nothing taken, where there is no room.
        """
        held: list[str] = []
        copies: list[tuple[torch.Tensor, int]] = []
        for piece in blob.shared:
            if piece.key in self._shared:
                self._shared.hold(piece.key)
            elif (start := make_room(piece.data.numel())) is not None:
                self._shared.put(piece, start)
                copies.append((piece.data, start))
            else:
                break
            held.append(piece.key)
        start = make_room(blob.data.numel()) if len(held) == len(blob.shared) else None
        if start is None:
            self._shared.release(held)
            return None
        place = ArenaPlace(start, self._ranges.rounded(blob.data.numel()), tuple(held))
        return place, [*copies, (blob.data, start)]

    def free(self, place: ArenaPlace) -> None:
        self._ranges.free(place.start)
        self._shared.release(place.shared)

    def starts(self, place: ArenaPlace) -> Mapping[str, int]:
        """Return the element at which each piece beside the place begins, by key."""
        return self._shared.starts(place.shared)

    def size(self, adapters: Iterable[ArenaPlace | Blob]) -> int:
        """Return the elements that these take together, here or once they are, what they share once."""
        own = 0
        shared: dict[str, int] = {}
        for adapter in adapters:
            if isinstance(adapter, ArenaPlace):
                own += adapter.size
                shared |= {key: self._shared.size(key) for key in adapter.shared}
            else:
                own += self._ranges.rounded(adapter.data.numel())
                shared |= {piece.key: self._ranges.rounded(piece.data.numel()) for piece in adapter.shared}
        return own + sum(shared.values())

    def widest_gap(self, places: Iterable[ArenaPlace]) -> int:
        """Return the elements of the widest range that would be free if nothing but these were in the arena."""
        taken: dict[int, int] = {}
        for place in places:
            taken[place.start] = place.size
            taken |= {start: self._shared.size(key) for key, start in self.starts(place).items()}
        ends = [0, *(start + size for start, size in sorted(taken.items()))]
        return max(begin - end for end, begin in zip(ends, [*sorted(taken), self.capacity], strict=True))

    def check_integrity(self, places: Iterable[ArenaPlace]) -> None:
        """Raises AssertionError where ranges overlap, or pieces are not held by these places."""
        self._ranges.check_integrity()
        holders: dict[str, int] = {}
        for key in (key for place in places for key in place.shared):
            holders[key] = holders.get(key, 0) + 1
        assert holders == self._shared.holders(), "a shared piece's holders are not the adapters that have it"
