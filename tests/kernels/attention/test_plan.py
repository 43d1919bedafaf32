from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.kernels.attention.layout import Limits, Reach, Span
from peftserve.kernels.attention.plan import PlanShape, most_fields, most_slots, positions_of, span_arrays
from peftserve.kernels.attention.triton.items import RunningItems
from peftserve.kernels.device.step_memory import ALIGNMENT

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


@given(st.lists(sequences, min_size=1, max_size=3), shapes, shapes, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_no_step_needs_more_than_the_limits_say(
    steps: list[Sequence[tuple[int, int]]], one: PlanShape, other: PlanShape, beyond: int
) -> None:
    rows = max(sum(rows for rows, _ in found) for found in steps) + beyond
    positions = max((rows + context for found in steps for rows, context in found), default=1)
    limits = Limits(rows, max(map(len, steps)), positions)
    for found in steps:
        step = span_arrays(spans_of(found), rows, PAGE)
        for both in ((one, other), (other, one)):
            plans = [RunningItems(shape) for shape in both]
            items = [plan.update(step) for plan in plans]
            assert all(plan.slots <= most_slots(shape) for plan, shape in zip(plans, both, strict=True))
            parts = [rows, len(step.pages), *(part.size for part in items)]
            needed = sum(-(-part // ALIGNMENT) * ALIGNMENT for part in parts)
            assert needed <= most_fields([(one, other)] * 2, limits, PAGE)
            assert needed <= most_fields([(shape,) for shape in both], limits, PAGE)


@given(sequences, st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_positions_are_where_the_pages_are(found: list[tuple[int, int]], beyond: int) -> None:
    spans = spans_of(found)
    num_rows = sum(span.rows for span in spans) + beyond
    positions = positions_of(span_arrays(spans, num_rows, PAGE), PAGE)
    expected = [
        int(span.pages[position // PAGE]) * PAGE + position % PAGE
        for span in spans
        for position in range(span.total - span.rows, span.total)
    ]
    assert positions.tolist() == expected + [-1] * beyond


def test_pages_may_be_arrays() -> None:
    spans = spans_of([(1, 6), (2, 70)])
    arrays = [span._replace(pages=np.array(span.pages, dtype=np.int32)) for span in spans]
    for one, other in zip(span_arrays(spans, 3, PAGE), span_arrays(arrays, 3, PAGE), strict=True):
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize("span", [Span(0, 1, 5, [1]), Span(0, 3, 2, [1])])
def test_a_span_must_fit_its_pages_and_its_positions(span: Span) -> None:
    with pytest.raises(ValueError, match="pages"):
        span_arrays([span], 1, PAGE)
