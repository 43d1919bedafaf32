from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.kernels.attention import Limits, Span
from peftserve.kernels.attention_plan import (
    HEADER_FIELDS,
    ITEM_FIELDS,
    Shape,
    items_of,
    most_fields,
    most_slots,
    pack,
    positions_of,
    step_of,
)

PAGE = 4
SHAPE = Shape(group=3, kv_heads=2, window=None, block_m=16, block_n=16, programs=8)

sequences = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300)), max_size=5)
shapes = st.builds(
    Shape,
    group=st.sampled_from([1, 3, 20]),
    kv_heads=st.sampled_from([1, 2]),
    window=st.sampled_from([None, 1, 5, 50]),
    block_m=st.sampled_from([16, 64]),
    block_n=st.sampled_from([16, 64]),
    programs=st.sampled_from([1, 8, 100]),
    splits=st.booleans(),
)


def spans_of(found: Sequence[tuple[int, int]]) -> list[Span]:
    """Pages count on from 100, without gaps between the spans."""
    spans, row, page = [], 0, 100
    for rows, context in found:
        count = -(-(rows + context) // PAGE)
        spans.append(Span(row, rows, rows + context, list(range(page, page + count))))
        row, page = row + rows, page + count
    return spans


@given(sequences, shapes, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_row_meets_every_key_that_it_sees_once(found: list[tuple[int, int]], shape: Shape, beyond: int) -> None:
    spans = spans_of(found)
    num_rows = sum(span.rows for span in spans) + beyond
    items, slots = items_of(step_of(spans, num_rows, PAGE), shape)
    met = {span.row: np.zeros((span.rows * shape.group, span.total), dtype=np.int64) for span in spans}
    padding = np.zeros(beyond * shape.group, dtype=np.int64)
    taken = np.zeros(slots, dtype=np.int64)
    for row, first, end, context, _, start, stop, splits, first_slot, split in items.tolist():
        queries = slice(first, min(first + shape.block_m, end))
        if splits > 1:
            taken[first_slot + split] += 1
        if row not in met:
            padding[queries] += 1
            assert stop <= start
            continue
        assert start % shape.block_n == 0
        assert context == met[row].shape[1] - end // shape.group
        met[row][queries, start:stop] += 1
    for span in spans:
        position = span.total - span.rows + np.arange(span.rows * shape.group)[:, None] // shape.group
        key = np.arange(span.total)
        seen = (key <= position) & (key > position - (shape.window or span.total))
        assert (met[span.row][seen] == 1).all()
        assert met[span.row].max() == 1
    assert (padding == 1).all()
    assert (taken == 1).all()
    assert shape.splits or slots == 0


@given(st.lists(sequences, min_size=1, max_size=3), shapes, shapes, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_no_step_needs_more_than_the_limits_say(
    steps: list[Sequence[tuple[int, int]]], one: Shape, other: Shape, beyond: int
) -> None:
    rows = max(sum(rows for rows, _ in found) for found in steps) + beyond
    positions = max((rows + context for found in steps for rows, context in found), default=1)
    limits = Limits(rows, max(map(len, steps)), positions)
    for found in steps:
        step = step_of(spans_of(found), rows, PAGE)
        for both in ((one, other), (other, one)):
            plans = [items_of(step, shape) for shape in both]
            assert all(plan.slots <= most_slots(shape) for plan, shape in zip(plans, both, strict=True))
            needed = len(pack(step, plans, positions_of(step, PAGE)))
            assert needed <= most_fields([(one, other)] * 2, limits, PAGE)
            assert needed <= most_fields([(shape,) for shape in both], limits, PAGE)


@given(sequences, st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_positions_are_where_the_pages_are(found: list[tuple[int, int]], beyond: int) -> None:
    spans = spans_of(found)
    num_rows = sum(span.rows for span in spans) + beyond
    positions = positions_of(step_of(spans, num_rows, PAGE), PAGE)
    expected = [
        int(span.pages[position // PAGE]) * PAGE + position % PAGE
        for span in spans
        for position in range(span.total - span.rows, span.total)
    ]
    assert positions.tolist() == expected + [-1] * beyond


def test_the_array_leads_from_headers_to_pages() -> None:
    step = step_of(spans_of([(1, 6), (2, 70)]), 5, PAGE)
    shapes = [SHAPE, SHAPE._replace(window=8)]
    packed = pack(step, [items_of(step, shape) for shape in shapes], positions_of(step, PAGE))
    assert packed.dtype == np.int32
    assert packed[2 * HEADER_FIELDS :][:5].tolist() == positions_of(step, PAGE).tolist()
    for plan in range(2):
        first, count = packed[plan * HEADER_FIELDS :][:HEADER_FIELDS]
        items = packed[first : first + count * ITEM_FIELDS].reshape(-1, ITEM_FIELDS)
        assert {row: packed[page] for row, page in items[:, [0, 4]].tolist() if row < 3} == {0: 100, 1: 102}


def test_pages_may_be_arrays() -> None:
    spans = spans_of([(1, 6), (2, 70)])
    arrays = [span._replace(pages=np.array(span.pages, dtype=np.int32)) for span in spans]
    for one, other in zip(step_of(spans, 3, PAGE), step_of(arrays, 3, PAGE), strict=True):
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize("span", [Span(0, 1, 5, [1]), Span(0, 3, 2, [1])])
def test_a_span_must_fit_its_pages_and_its_positions(span: Span) -> None:
    with pytest.raises(ValueError, match="pages"):
        step_of([span], 1, PAGE)


@pytest.mark.parametrize(("sequences", "length"), [(1, 512), (16, 512), (64, 512), (256, 512), (1, 32768), (3, 4000)])
def test_keys_are_split_so_that_the_device_is_full(sequences: int, length: int) -> None:
    """Of Llama-3.1-8B on an H100: at least three quarters of what programs could do, or one block of keys each."""
    shape = Shape(group=4, kv_heads=8, window=None, block_m=16, block_n=64, programs=528)
    spans = [Span(row, 1, length, range(length // 16)) for row in range(sequences)]
    items, slots = items_of(step_of(spans, sequences, 16), shape)
    blocks = -(-(items[:, 6] - items[:, 5]) // shape.block_n)
    busiest = sum(blocks.repeat(shape.kv_heads)[:: shape.programs])
    assert busiest == 1 or blocks.sum() * shape.kv_heads / shape.programs / busiest > 0.75
    assert slots * shape.kv_heads <= 4 * shape.programs
