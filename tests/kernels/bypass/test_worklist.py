from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from peftserve.kernels.bypass.layout import Segment
from peftserve.kernels.bypass.worklist import RECORD_FIELDS, Lists, cut, lists_of, most_records, pack

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
    kept = [i for i, slot in enumerate(entries.slot) if works[slot]]
    assert lists.entries[:, 0].tolist() == entries.slot[kept].tolist()
    assert lists.entries[:, 2].tolist() == ranks[entries.slot[kept]].tolist()
    places, sizes = lists.entries[:, 1], lists.entries[:, 2] * entries.rows[kept]
    h = list(zip(places.tolist(), (places + sizes).tolist(), strict=True))
    assert all(one[1] <= other[0] for one, other in pairwise(sorted(h)))
    assert all(end <= lists.h_size and start % 4 == 0 for start, end in h)
    units = lists.units.tolist()
    place = 0
    for index, (row, rows, first, num_entries, num_units, *_) in enumerate(lists.tiles.tolist()):
        expected = []
        for entry in lists.entries[first : first + num_entries].tolist():
            slot, h_place, rank, weight = entry[:4]
            expected += [[slot, row, rows, h_place, r, index, weight, rank] for r in range(0, rank, block_r)]
        assert units[place : place + num_units] == expected
        place += num_units
    assert place == len(units)


def test_headers_lead_to_the_lists_that_groups_share() -> None:
    entries = cut([Segment(0, 1.0, 0, 20), Segment(1, 0.5, 20, 21)], 16)
    both = lists_of(entries, np.array([8, 40]), np.array([True, True]), 16)
    one = lists_of(entries, np.array([0, 4]), np.array([False, True]), 16)
    place = 9
    work = pack([both, one], np.array([0, -1, 1, 0]), np.array([1, 1, 3, 4]), place)
    assert work.headers.dtype == work.lists.dtype == np.int32
    assert work.lists.shape == (len_of(both) + len_of(one), RECORD_FIELDS)
    assert (work.num_tiles, work.h_size) == (3, 4 * both.h_size)
    headers = work.headers.tolist()
    assert headers[1] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert headers[3][:4] == headers[0][:4]
    assert [header[4] for header in headers] == [1, 1, 3, 4]
    for lists, header in ((both, headers[0]), (one, headers[2]), (both, headers[3])):
        units, num_units, tiles, num_tiles, _, h_size = header[:6]
        assert h_size == lists.h_size
        assert work.lists[units - place : units - place + num_units].tolist() == lists.units.tolist()
        for found, made in zip(work.lists[tiles - place : tiles - place + num_tiles], lists.tiles, strict=True):
            assert found[[0, 1, 3, 4]].tolist() == made[[0, 1, 3, 4]].tolist()
            there = work.lists[found[2] - place : found[2] - place + found[3]]
            assert there.tolist() == lists.entries[made[2] : made[2] + made[3]].tolist()


@given(st.one_of(segments, in_a_row), ranks, st.sampled_from([16, 32]))
def test_no_lists_are_longer_than_their_bound(work: list[Segment], ranks: np.ndarray, block_r: int) -> None:
    """By rows of all segments together."""
    lists = lists_of(cut(work, 16), ranks, np.ones(SLOTS, dtype=np.bool_), block_r)
    assert len_of(lists) <= most_records(sum(s.end - s.start for s in work), int(ranks.max()), block_r)


def len_of(lists: Lists) -> int:
    return len(lists.units) + len(lists.tiles) + len(lists.entries)


def test_nothing() -> None:
    entries = cut([Segment(0, 1.0, 4, 4)], 16)
    assert len(entries.tile) == 0
    lists = lists_of(entries, np.array([4]), np.array([True]), 16)
    assert (len_of(lists), lists.h_size) == (0, 0)
