"""Ranges of an arena: first fit from either end, neighbours merged when they are freed."""

from bisect import insort


class RangeAllocator:
    """Hands out [start, start + size) of a space of `capacity` elements, sizes rounded up to `alignment`."""

    def __init__(self, capacity: int, alignment: int) -> None:
        self.capacity = capacity - capacity % alignment
        self._alignment = alignment
        self._free: list[tuple[int, int]] = [(0, self.capacity)] if self.capacity else []
        self._used: dict[int, int] = {}

    @property
    def num_used(self) -> int:
        return sum(self._used.values())

    def allocate(self, size: int, *, at_end: bool = False) -> int | None:
        """Return the start of a range of at least `size` elements; None if no free range is large enough.

        at_end: as far back as there is one, and not as far in front.
        """
        size = max(self.rounded(size), self._alignment)
        fitting = [i for i, (_, length) in enumerate(self._free) if length >= size]
        if not fitting:
            return None
        i = fitting[-1 if at_end else 0]
        begin, length = self._free[i]
        start, rest = (begin + length - size, begin) if at_end else (begin, begin + size)
        self._free[i : i + 1] = [(rest, length - size)] if length > size else []
        self._used[start] = size
        return start

    def rounded(self, size: int) -> int:
        return -(-size // self._alignment) * self._alignment

    def free(self, start: int) -> None:
        insort(self._free, (start, self._used.pop(start)))
        merged: list[tuple[int, int]] = []
        for begin, length in self._free:
            if merged and sum(merged[-1]) == begin:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((begin, length))
        self._free = merged

    def check_integrity(self) -> None:
        """Raises AssertionError unless free and used ranges tile the space and no two free ones touch."""
        ranges = sorted([*((s, n, True) for s, n in self._free), *((s, n, False) for s, n in self._used.items())])
        position, previous_free = 0, False
        for start, length, free in ranges:
            assert start == position, f"gap or overlap at {position}: next range starts at {start}"
            assert not (free and previous_free), f"two free ranges meet at {start}"
            position, previous_free = start + length, free
        assert position == self.capacity, f"ranges end at {position} of {self.capacity}"
