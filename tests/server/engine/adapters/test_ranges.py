"""The arena's ranges against a map of every element."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from peftserve.server.engine.adapters.ranges import RangeAllocator

CAPACITY, ALIGNMENT = 43, 4


class RangesMachine(RuleBasedStateMachine):
    starts = Bundle("starts")

    def __init__(self) -> None:
        super().__init__()
        self.ranges = RangeAllocator(CAPACITY, ALIGNMENT)
        self.owner: list[int | None] = [None] * (CAPACITY // ALIGNMENT * ALIGNMENT)

    def longest_free(self) -> int:
        lengths = [0]
        for owner in self.owner:
            lengths.append(0 if owner is not None else lengths[-1] + 1)
        return max(lengths)

    @rule(target=starts, size=st.integers(0, 20))
    def allocate(self, size: int):  # type: ignore[no-untyped-def]
        rounded = max(-(-size // ALIGNMENT), 1) * ALIGNMENT
        start = self.ranges.allocate(size)
        if start is None:
            assert self.longest_free() < rounded
            return multiple()
        assert start % ALIGNMENT == 0
        assert self.owner[start : start + rounded] == [None] * rounded
        assert not any(self.owner[i : i + rounded] == [None] * rounded for i in range(start)), (
            "an earlier range was free"
        )
        self.owner[start : start + rounded] = [start] * rounded
        return start

    @rule(start=consumes(starts))
    def free(self, start: int) -> None:
        self.ranges.free(start)
        self.owner = [None if owner == start else owner for owner in self.owner]

    @invariant()
    def agrees(self) -> None:
        self.ranges.check_integrity()
        assert self.ranges.num_used == sum(owner is not None for owner in self.owner)


TestRanges = RangesMachine.TestCase
TestRanges.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_all_of_the_space_comes_back_as_one_range() -> None:
    ranges = RangeAllocator(64, 8)
    starts = [ranges.allocate(8) for _ in range(8)]
    assert ranges.allocate(1) is None
    for start in (0, 16, 8, 56, 40, 48, 32, 24):
        assert start in starts
        ranges.free(start)
    assert ranges.allocate(64) == 0


def test_a_space_smaller_than_the_alignment_holds_nothing() -> None:
    assert RangeAllocator(7, 8).allocate(0) is None


def test_a_range_may_lie_as_far_back_as_there_is_one() -> None:
    ranges = RangeAllocator(40, 4)
    assert (ranges.allocate(8, at_end=True), ranges.allocate(8), ranges.allocate(4, at_end=True)) == (32, 0, 28)
    ranges.free(32)
    assert ranges.allocate(12, at_end=True) == 16, "the hole at the end is too small"
    assert ranges.allocate(8, at_end=True) == 32
    ranges.check_integrity()
