"""The pieces of the arena that several adapters have in common: each is there once, as long as any adapter has it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .packing import SharedPiece
from .ranges import RangeAllocator


@dataclass(slots=True)
class _Range:
    """The range of one piece. start, size: in elements. holders: adapters on the device that have it."""

    start: int
    size: int
    holders: int


class SharedRanges:
    """Ranges of an arena by the key of the piece in them, counted."""

    def __init__(self, ranges: RangeAllocator) -> None:
        self._ranges = ranges
        self._held: dict[str, _Range] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def starts(self, keys: Iterable[str]) -> Mapping[str, int]:
        return {key: self._held[key].start for key in keys}

    def size(self, key: str) -> int:
        """Return the elements that the range takes."""
        return self._held[key].size

    def hold(self, key: str) -> None:
        """Count one more adapter that has a piece which is there."""
        self._held[key].holders += 1

    def put(self, piece: SharedPiece, start: int) -> None:
        """Note that the range at `start`, which was allocated for it, holds the piece, for one adapter."""
        self._held[piece.key] = _Range(start, self._ranges.rounded(piece.data.numel()), holders=1)

    def release(self, keys: Iterable[str]) -> None:
        """Count one adapter less for each of these, and free those that none has."""
        for key in keys:
            self._held[key].holders -= 1
            if self._held[key].holders == 0:
                self._ranges.free(self._held.pop(key).start)

    def holders(self) -> dict[str, int]:
        return {key: held.holders for key, held in self._held.items()}
