"""The pieces of the arena that several adapters have in common: each is there once, while anybody has it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .packing import SharedPiece
from .ranges import RangeAllocator


@dataclass(slots=True)
class _Range:
    """size: elements. holders: adapters on the device that have it."""

    start: int
    size: int
    holders: int


class SharedRanges:
    """Hands out ranges of `ranges` by the key of what lies in them."""

    def __init__(self, ranges: RangeAllocator) -> None:
        self._ranges = ranges
        self._held: dict[str, _Range] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def starts(self, keys: Iterable[str]) -> Mapping[str, int]:
        return {key: self._held[key].start for key in keys}

    def size(self, key: str) -> int:
        """Elements that the range takes."""
        return self._held[key].size

    def hold(self, key: str) -> None:
        """One more adapter has a piece that is there."""
        self._held[key].holders += 1

    def put(self, piece: SharedPiece, start: int) -> None:
        """The range at `start`, which was allocated for it, is to hold the piece; one adapter has it."""
        self._held[piece.key] = _Range(start, self._ranges.rounded(piece.data.numel()), holders=1)

    def release(self, keys: Iterable[str]) -> None:
        """One adapter less has these; what nobody has is freed."""
        for key in keys:
            self._held[key].holders -= 1
            if self._held[key].holders == 0:
                self._ranges.free(self._held.pop(key).start)

    def holders(self) -> dict[str, int]:
        return {key: held.holders for key, held in self._held.items()}
