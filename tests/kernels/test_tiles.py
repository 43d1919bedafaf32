from hypothesis import given
from hypothesis import strategies as st

from peftserve.kernels.layout import Segment
from peftserve.kernels.tiles import cut

segments = st.lists(
    st.builds(
        lambda slot, start, length: Segment(slot, 1.0, start, start + length),
        st.integers(0, 5),
        st.integers(0, 90),
        st.sampled_from([0, 1, 2, 5, 16, 17, 70]),
    ),
    max_size=8,
)


@given(segments)
def test_each_row_of_each_segment_is_in_one_entry_and_each_row_in_one_tile(work: list[Segment]) -> None:
    tiles = cut(work)
    covered: list[tuple[int, int]] = []
    owned: list[int] = []
    for row, rows, first, last in tiles.tiles.tolist():
        assert 0 < rows <= tiles.block
        owned += range(row, row + rows)
        order = []
        for slot, entry_row, entry_rows, *_ in tiles.entries[first:last].tolist():
            assert (entry_row, entry_rows) == (row, rows)
            covered += [(slot, r) for r in range(row, row + rows)]
            order.append(slot)
        assert order == [s.slot for s in work if s.start <= row < s.end]
    assert len(owned) == len(set(owned))
    assert sorted(covered) == sorted((s.slot, row) for s in work for row in range(s.start, s.end))


@given(segments)
def test_entries_share_no_row_of_h(work: list[Segment]) -> None:
    tiles = cut(work)
    rows = [row for entry in tiles.entries.tolist() for row in range(entry[3], entry[3] + entry[2])]
    assert rows == list(range(tiles.num_rows))


def test_blocks_follow_the_longest_run() -> None:
    for length, block in ((1, 1), (2, 1), (3, 16), (16, 16), (17, 64), (2048, 64)):
        assert cut([Segment(0, 1.0, 0, length), Segment(1, 1.0, length, length + 1)]).block == block


def test_nothing() -> None:
    tiles = cut([Segment(0, 1.0, 4, 4)])
    assert tiles.entries.shape == (0, 8)
    assert tiles.tiles.shape == (0, 4)
    assert tiles.slots == ()
