from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from peftserve.kernels.bypass.layout import Segment
from peftserve.kernels.bypass.worklist import RECORD_FIELDS, Lists, cut, lists_of, pack

SLOTS = 6

segments = st.lists(
    st.builds(
        lambda slot, weight, start, length: Segment(slot, weight, start, start + length),
        st.integers(0, SLOTS - 1),
        st.sampled_from([1.0, -0.5]),
        st.integers(0, 90),
        st.sampled_from([0, 1, 2, 5, 16, 17, 70]),
    ),
    max_size=8,
)
in_a_row = st.lists(st.tuples(st.integers(0, SLOTS - 1), st.sampled_from([0, 1, 2, 16, 17])), max_size=8).map(
    lambda parts: [
        Segment(slot, 1.0, sum(length for _, length in parts[:i]), sum(length for _, length in parts[: i + 1]))
        for i, (slot, length) in enumerate(parts)
    ]
)
ranks = st.lists(st.integers(0, 40), min_size=SLOTS, max_size=SLOTS).map(np.array)


def weight_of(bits: int) -> float:
    return float(np.int32(bits).view(np.float32))


@given(st.one_of(segments, in_a_row), st.sampled_from([16, 64]))
def test_each_row_of_each_segment_is_in_one_entry_and_each_row_in_one_tile(work: list[Segment], block: int) -> None:
    entries = cut(work, block)
    tiles: dict[int, tuple[int, int]] = {}
    found: dict[int, list[tuple[int, float]]] = {}
    for tile, slot, row, rows, weight in zip(*(column.tolist() for column in entries), strict=True):
        assert 0 < rows <= block
        assert tiles.setdefault(tile, (row, rows)) == (row, rows)
        for r in range(row, row + rows):
            found.setdefault(r, []).append((slot, weight_of(weight)))
    covering = {row: [(s.slot, s.weight) for s in work if s.start <= row < s.end] for row in range(170)}
    assert found == {row: parts for row, parts in covering.items() if parts}
    assert sorted(tiles) == list(range(len(tiles)))
    spans = [(row, row + rows) for _, (row, rows) in sorted(tiles.items())]
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


@given(segments, ranks, st.lists(st.booleans(), min_size=6, max_size=6).map(np.array), st.sampled_from([16, 32]))
def test_units_share_out_the_ranks_of_all_entries_that_have_work(
    work: list[Segment], ranks: np.ndarray, extra: np.ndarray, block_r: int
) -> None:
    works = (ranks > 0) | extra  # those of rank 0 have scales or biases
    entries = cut(work, 16)
    lists = lists_of(entries, ranks, works, block_r)
    found = lists.entries.tolist()
    expected: dict[int, list[list[int]]] = {}  # of each tile, what its entries say of the step
    for tile, slot, row, rows, weight in zip(*(column.tolist() for column in entries), strict=True):
        if works[slot]:
            expected.setdefault(tile, []).append([slot, row, rows, int(ranks[slot]), weight])
    assert lists.num_tiles == len(expected)
    seen, units = [], []
    for first, members in zip(found, expected.values(), strict=False):
        count, others = first[3:5]
        own = [first, *found[others : others + count - 1]]
        assert [[*entry[:3], *entry[6:8]] for entry in own] == members
        assert all(entry[3] == count for entry in own)
        seen += own
        for slot, row, rows, _, _, place, width, weight in own:
            units += [[slot, row, rows, place, r, width, weight, 0] for r in range(0, width, block_r)]
    assert sorted(seen) == sorted(found)
    assert lists.units.tolist() == units
    h = sorted((entry[5], entry[5] + entry[2] * entry[6]) for entry in found)
    assert all(one[1] <= other[0] for one, other in pairwise(h))
    assert all(end <= lists.h_size and start % 4 == 0 for start, end in h)


def test_headers_lead_to_the_lists_that_groups_share() -> None:
    entries = cut([Segment(0, 1.0, 0, 20), Segment(1, 0.5, 20, 21)], 16)
    both = lists_of(entries, np.array([8, 40]), np.array([True, True]), 16)
    one = lists_of(entries, np.array([0, 4]), np.array([False, True]), 16)
    place = 9
    about = np.array([[16, 300, 0], [16, 70, 1], [32, 8, 0], [16, 9, 0]])
    work = pack([both, one], np.array([0, -1, 1, 0]), about, place)
    assert work.headers.dtype == work.lists.dtype == np.int32
    assert work.lists.shape == (len_of(both) + len_of(one), RECORD_FIELDS)
    headers = work.headers.tolist()
    assert headers[1] == [0, 0, 0, 0, 0, 16, 70, 1]
    assert headers[3][:5] == headers[0][:5]
    assert [header[5:] for header in headers] == about.tolist()
    for lists, header in ((both, headers[0]), (one, headers[2]), (both, headers[3])):
        units, num_units, first, num_tiles, num_entries = header[:5]
        assert num_tiles == lists.num_tiles
        assert work.lists[units - place : units - place + num_units].tolist() == lists.units.tolist()
        assert work.lists[first - place : first - place + num_entries].tolist() == lists.entries.tolist()


def len_of(lists: Lists) -> int:
    return len(lists.units) + len(lists.entries)


def test_nothing() -> None:
    entries = cut([Segment(0, 1.0, 4, 4)], 16)
    assert len(entries.tile) == 0
    lists = lists_of(entries, np.array([4]), np.array([True]), 16)
    assert (len_of(lists), lists.h_size) == (0, 0)
