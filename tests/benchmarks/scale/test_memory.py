"""A memory keeps what is pinned, gives up what was used longest ago, and never holds more than it may."""

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scale.memory import Holders, Memory


def test_the_one_used_longest_ago_gives_way() -> None:
    holders = Holders(set)
    memory = Memory(3, 10, 0, holders)
    for adapter in (1, 2, 3, 1, 4):  # 1 is used again
        assert memory.add(adapter, 1)
    assert [adapter for adapter in range(5) if adapter in memory] == [1, 3, 4]
    assert {adapter for adapter, having in holders.items() if having} == {1, 3, 4}


def test_what_is_pinned_stays_until_it_is_unpinned_as_often() -> None:
    memory = Memory(10, 1, 0, Holders(set))
    assert not memory.pin(1)
    memory.add(1, 1)
    assert memory.pin(1)
    assert memory.pin(1)
    assert not memory.unpin(1)
    assert not memory.add(2, 1)
    assert memory.unpin(1)
    assert memory.add(2, 1)
    assert 1 not in memory


@given(st.lists(st.tuples(st.sampled_from(["add", "pin", "unpin"]), st.integers(0, 8)), max_size=200))
def test_sums_and_the_index_stay_right(steps: list[tuple[str, int]]) -> None:
    memory, pins = Memory(12, 5, 7, Holders(set)), dict.fromkeys(range(9), 0)
    for what, adapter in steps:
        if what == "add":
            memory.add(adapter, 1 + adapter % 4)
        elif what == "pin":
            pins[adapter] += memory.pin(adapter)
        elif pins[adapter]:
            pins[adapter] -= 1
            memory.unpin(adapter)
        memory.check_integrity()
        assert all(adapter in memory for adapter, count in pins.items() if count)
