"""Which rows go into a batch and come out of it, and which segments form one."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from peftserve.kernels.ops.batches import alike, batch_rows, row_index, waves

CPU = torch.device("cpu")
LENGTHS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=6)
SPANS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40)), min_size=1, max_size=12)


def laid_out(drawn: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Make ranges that share no row from (length, gap before it)."""
    ranges, end = [], 0
    for length, gap in drawn:
        ranges.append((end + gap, end + gap + length))
        end += gap + length
    return ranges


@given(LENGTHS)
def test_each_row_of_a_part_goes_in_and_gets_its_own_term(drawn: list[tuple[int, int]]) -> None:
    ranges = laid_out(drawn)
    x = torch.arange(3.0 * ranges[-1][1]).view(-1, 3)
    rows = batch_rows(ranges, CPU)
    taken = rows.of(x)
    assert taken.shape[:2] == (len(ranges), max(end - start for start, end in ranges))
    y, wanted = torch.zeros_like(x), torch.zeros_like(x)
    for part, (start, end) in enumerate(ranges):
        assert torch.equal(taken[part, : end - start], x[start:end])
        wanted[start:end] = x[start:end] * (part + 1)
    rows.add_(y, taken * torch.arange(1.0, len(ranges) + 1)[:, None, None])
    assert torch.equal(y, wanted)


@given(LENGTHS)
def test_row_index(drawn: list[tuple[int, int]]) -> None:
    ranges = laid_out(drawn)
    where, owner = row_index(ranges, CPU)
    rows = [row for start, end in ranges for row in range(start, end)]
    assert torch.arange(ranges[-1][1])[where].tolist() == rows
    owners = list(range(len(ranges))) if owner is None else owner.tolist()
    assert owners == [part for part, (start, end) in enumerate(ranges) for _ in range(start, end)]


@given(SPANS)
def test_waves_share_no_rows_and_hold_every_span_once(drawn: list[tuple[int, int]]) -> None:
    ranges = [(start, start + length) for start, length in drawn]
    found = waves(ranges)
    assert sorted(place for wave in found for place in wave) == list(range(len(ranges)))
    for wave in found:
        rows = [row for place in wave for row in range(*ranges[place])]
        assert len(rows) == len(set(rows))
    most = max(sum(start <= row < end for start, end in ranges) for row in range(60))
    assert len(found) == most  # no more than the row with most needs


@given(SPANS, st.integers(1, 64))
def test_spans_of_like_lengths_are_padded_to_few_more_rows(drawn: list[tuple[int, int]], most_rows: int) -> None:
    ranges = [(start, start + length) for start, length in drawn]
    found = alike(ranges, most_rows)
    assert sorted(place for places in found for place in places) == list(range(len(ranges)))
    padded = 0
    for places in found:
        longest = max(ranges[place][1] - ranges[place][0] for place in places)
        assert len(places) * longest <= most_rows or len(places) == 1
        padded += len(places) * longest
    assert padded <= 4 * sum(end - start for start, end in ranges)
