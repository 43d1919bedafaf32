"""Items of a step alone, and that those made from the last step's are the same."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.kernels.attention.layout import Reach, Span
from peftserve.kernels.attention.plan import PlanShape, span_arrays
from peftserve.kernels.attention.triton.items import RunningItems

PAGE = 4

sequences = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 300)), max_size=5)
shapes = st.builds(
    PlanShape,
    group=st.sampled_from([1, 3, 20]),
    kv_heads=st.sampled_from([1, 2]),
    reach=st.builds(Reach, st.sampled_from([None, 1, 5, 50]), st.booleans()),
    block_m=st.sampled_from([16, 64]),
    block_n=st.sampled_from([16, 64]),
    programs=st.sampled_from([1, 8, 100]),
)


def spans_of(found: Sequence[tuple[int, int]]) -> list[Span]:
    """Make adjoining spans whose pages count up from 100."""
    spans, row, page = [], 0, 100
    for rows, context in found:
        count = -(-(rows + context) // PAGE)
        spans.append(Span(row, rows, rows + context, list(range(page, page + count))))
        row, page = row + rows, page + count
    return spans


@given(sequences, shapes, st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_row_meets_every_key_that_it_sees_once(
    found: list[tuple[int, int]], shape: PlanShape, beyond: int
) -> None:
    spans = spans_of(found)
    num_rows = sum(span.rows for span in spans) + beyond
    plan = RunningItems(shape)
    items = plan.update(span_arrays(spans, num_rows, PAGE))
    slots = plan.slots
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
        window = shape.reach.window or span.total
        seen = (key <= position) & (key > position - (position % window + 1 if shape.reach.restarts else window))
        assert (met[span.row][seen] == 1).all()
        assert met[span.row].max() == 1
    assert (padding == 1).all()
    assert (taken == 1).all()


@given(st.lists(st.tuples(sequences, st.integers(1, 40)), min_size=1, max_size=3), shapes, st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_items_made_from_the_last_steps_are_those_of_the_step(
    batches: list[tuple[list[tuple[int, int]], int]], shape: PlanShape, beyond: int
) -> None:
    """Batches of sequences that each run for a few steps, of a token or more."""
    running = RunningItems(shape)
    for found, steps in batches:
        for number in range(0, steps, 3):
            spans = spans_of([(rows, context + number) for rows, context in found])
            step = span_arrays(spans, sum(span.rows for span in spans) + beyond, PAGE)
            alone = RunningItems(shape)
            assert sorted(running.update(step, 7).tolist()) == sorted(alone.update(step, 7).tolist())
            assert running.slots == alone.slots


@pytest.mark.parametrize(("sequences", "length"), [(1, 512), (16, 512), (64, 512), (256, 512), (1, 32768), (3, 4000)])
def test_keys_are_split_so_that_the_device_is_full(sequences: int, length: int) -> None:
    """Of Llama-3.1-8B on an H100: at least three quarters of what programs could do, or one block of keys each."""
    shape = PlanShape(group=4, kv_heads=8, reach=Reach(), block_m=16, block_n=64, programs=528)
    spans = [Span(row, 1, length, range(length // 16)) for row in range(sequences)]
    plan = RunningItems(shape)
    items = plan.update(span_arrays(spans, sequences, 16))
    blocks = -(-(items[:, 6] - items[:, 5]) // shape.block_n)
    busiest = sum(blocks.repeat(shape.kv_heads)[:: shape.programs])
    assert busiest == 1 or blocks.sum() * shape.kv_heads / shape.programs / busiest > 0.75
    assert plan.slots * shape.kv_heads <= 4 * shape.programs
