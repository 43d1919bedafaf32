from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.kernels.bypass.columns.places import GRAIN, SLACK, ColumnPlaces, needed

COLUMNS = 256
sizes = st.dictionaries(st.integers(0, 2), st.sampled_from([8, 16, 48, 64, 104]), min_size=1)
needs_of_slots = st.dictionaries(st.integers(0, 9), sizes, min_size=10, max_size=10)
steps = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True), max_size=20)


def fitting(needs: Mapping[int, Mapping[int, int]], slots: list[int]) -> dict[int, Mapping[int, int]]:
    found: dict[int, Mapping[int, int]] = {}
    for slot in slots:
        beside = [*found.values(), needs[slot]]
        if all(sum(wanted.get(group, 0) for wanted in beside) <= COLUMNS for group in range(3)):
            found[slot] = needs[slot]
    return found


@given(needs_of_slots, steps, st.integers(0, 9))
def test_whatever_fits_gets_columns_of_its_own(
    needs: dict[int, dict[int, int]], chosen: list[list[int]], gone: int
) -> None:
    places = ColumnPlaces(COLUMNS)
    known: dict[int, dict[int, int]] = {}
    for slots in chosen:
        wanted = fitting(needs, slots)
        missing = places.place(wanted)
        places.check_integrity()
        assert len(set(missing)) == len(missing)
        starts = {slot: {group: places.start(slot, group) for group in needs[slot]} for slot in wanted}
        for slot in wanted:
            assert slot in missing or starts[slot] == known[slot], "who moves is missing"
        known = {slot: starts.get(slot, known.get(slot, {})) for slot in places.slots}
        for group in range(3):
            total = sum(size.get(group, 0) for size in wanted.values())
            assert total <= places.end(group, [*wanted]) <= min(total + SLACK, COLUMNS) or not total
        places.forget(gone)
        known.pop(gone, None)
        assert gone not in places.slots


def test_who_was_there_stays_while_there_is_room() -> None:
    places = ColumnPlaces(64)
    assert places.place({1: {0: 16}, 2: {0: 16}}) == [1, 2]
    assert places.place({3: {0: 16}}) == [3]
    assert places.place({2: {0: 16}, 1: {0: 16}}) == []
    assert places.place({4: {0: 32}}) == [4], "in the place of 3, which was used before 1 and 2, and of one of these"
    assert 3 not in places.slots
    assert places.place({5: {0: 64}}) == [5]
    assert places.slots == {5}


def test_a_slot_far_to_the_right_comes_nearer() -> None:
    places = ColumnPlaces(256)
    places.place({slot: {0: 48} for slot in range(5)})
    assert places.start(4, 0) == 192
    assert places.place({4: {0: 48}}) == [4]
    assert places.end(0, [4]) == 48


def test_columns_in_pieces_are_put_together() -> None:
    places = ColumnPlaces(64)
    places.place({slot: {0: 16} for slot in range(4)})
    places.forget(0)
    places.forget(2)
    assert places.place({1: {0: 16}, 3: {0: 16}, 4: {0: 32}}) == [1, 3, 4]
    assert [places.start(slot, 0) for slot in (1, 3, 4)] == [0, 16, 32]


@pytest.mark.parametrize(("rank", "columns"), [(0, 0), (1, GRAIN), (GRAIN, GRAIN), (GRAIN + 1, 2 * GRAIN)])
def test_ranges_are_whole_grains(rank: int, columns: int) -> None:
    assert needed(rank) == columns
