"""Features of ranks: all of them, each once, in whole heads and parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.parallel.cuts import beside, by_heads, even, packed


@given(ranks=st.integers(1, 5), widths=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_ranks_have_every_feature_once_and_a_run_of_each_part(ranks: int, widths: list[int]) -> None:
    parts = [width * ranks for width in widths]
    features = packed(parts, ranks, "it")
    assert sorted(torch.cat(features).tolist()) == list(range(sum(parts)))
    for rank, own in enumerate(features):
        starts = [sum(parts[:i]) + rank * width for i, width in enumerate(widths)]
        assert own.tolist() == [start + i for start, width in zip(starts, widths, strict=True) for i in range(width)]


def test_heads_stay_whole() -> None:
    assert [own.tolist() for own in by_heads(4, 3, 2, "it")] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_neighbours_share_a_head_where_there_are_fewer_than_ranks() -> None:
    assert [own.tolist() for own in by_heads(2, 2, 4, "it")] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_parts_beside_each_other_keep_their_places() -> None:
    parts = [even(4, 2, "q"), by_heads(1, 2, 2, "k")]
    assert [own.tolist() for own in beside(parts, [4, 2])] == [[0, 1, 4, 5], [2, 3, 4, 5]]


def test_what_cannot_be_divided_is_refused_by_name() -> None:
    with pytest.raises(UnservableModel, match="the 5 features of the gate cannot be divided among 2 ranks"):
        even(5, 2, "the gate")
    with pytest.raises(UnservableModel, match="the 3 heads of k_proj cannot be divided among 2 ranks"):
        by_heads(3, 8, 2, "k_proj")
