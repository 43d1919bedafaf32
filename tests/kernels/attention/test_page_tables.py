"""Pages are found where the table says, whichever sequences come, grow and go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.kernels.attention.page_tables import PageTables

SEQUENCES, MOST = 5, 40


def check(tables: PageTables, lists: list[list[int]]) -> None:
    tables.update(lists)
    assert tables.counts.tolist() == [len(pages) for pages in lists]
    for first, pages in zip(tables.first.tolist(), lists, strict=True):
        assert tables.flat[first : first + len(pages)].tolist() == pages
        assert first + len(pages) <= tables.end


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), max_size=SEQUENCES, unique_by=lambda each: each[0]),
        max_size=12,
    ),
    st.integers(0, 200),
)
@settings(max_examples=200, deadline=None)
def test_each_sequence_has_its_pages(steps: list[list[tuple[int, int]]], spare: int) -> None:
    """Each step is (name, pages more than in the last one). A sequence that was away returns with other pages."""
    tables = PageTables(SEQUENCES * MOST + spare)
    lists: dict[int, list[int]] = {}
    page = 0
    for step in steps:
        lists = {name: lists.get(name, []) for name, _ in step}
        for name, more in step:
            more = min(more, MOST - len(lists[name]))
            lists[name] += range(page, page + more)
            page += more
        check(tables, [lists[name] for name, _ in step])


def test_many_that_come_and_go_leave_little_behind() -> None:
    tables = PageTables(100_000)
    for number in range(200):
        check(tables, [[number, i] for i in range(64)])
        assert tables.end < 4000


def test_what_goes_on_is_not_looked_at_again() -> None:
    tables = PageTables(1000)
    one, other = [1, 2, 3], [4]
    check(tables, [one, other])
    tables.flat[tables.first[0]] = 9
    other.append(5)
    tables.update([one, other])
    assert tables.flat[tables.first[0]] == 9
    assert tables.flat[tables.first[1] :][:2].tolist() == [4, 5]


def test_one_list_may_be_there_twice() -> None:
    pages = [1, 2, 3]
    tables = PageTables(100)
    for _ in range(3):
        check(tables, [pages, pages])
        pages += range(20)


def test_lists_may_be_arrays_and_ranges() -> None:
    tables = PageTables(100)
    tables.update([np.arange(3), range(5, 9)])
    assert tables.flat[:3].tolist() == [0, 1, 2]
    assert tables.flat[tables.first[1] :][:4].tolist() == [5, 6, 7, 8]


def test_more_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(AssertionError, match="beyond the limits"):
        PageTables(5).update([[1, 2, 3], [4, 5, 6]])
