from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.kernels.attention.flash.plan import choose, plan_flash
from peftserve.kernels.attention.layout import Span

PAGE = 4
sequences = st.lists(st.tuples(st.integers(1, 12), st.sampled_from([0, 0, 1, 7, 30])), min_size=1, max_size=5)


def spans_of(found: Sequence[tuple[int, int]]) -> list[Span]:
    """Make spans whose pages count down from 90."""
    spans, row, page = list[Span](), 0, 90
    for rows, context in found:
        count = -(-(rows + context) // PAGE)
        spans.append(Span(row, rows, rows + context, list(range(page, page - count, -1))))
        row, page = row + rows, page - count
    return spans


@given(sequences, st.integers(2, 8), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_long_spans_are_chosen_while_there_is_room(
    found: list[tuple[int, int]], least_rows: int, most_keys: int
) -> None:
    spans = spans_of(found)
    chosen = choose(spans, least_rows, most_keys)
    assert all(spans[number].rows >= least_rows for number in chosen)
    left = [span for number, span in enumerate(spans) if span.rows >= least_rows and number not in chosen]
    if any(spans[number].total > spans[number].rows for number in chosen):
        room = most_keys - sum(spans[number].total for number in chosen)
        assert room >= 0
        assert all(span.total > room for span in left)


@given(sequences, st.integers(2, 8), st.sampled_from([None, 1, 3, 9, 100]))
@settings(max_examples=200, deadline=None)
def test_each_chosen_span_has_its_rows_and_the_keys_that_they_see(
    found: list[tuple[int, int]], least_rows: int, window: int | None
) -> None:
    spans = spans_of(found)
    chosen = choose(spans, least_rows, 10**6)
    plan = plan_flash(spans, chosen, window, PAGE)
    assert plan.ends.tolist() == [0, *(span.row + span.rows for span in spans)]
    for number, span in enumerate(spans):
        first, last = plan.key_ends[number : number + 2].tolist()
        assert last - first <= plan.most_keys
        assert span.rows <= plan.most_rows
        if plan.places is None:
            assert (first, last) == (span.row, span.row + span.rows)
            assert number not in chosen or span.total == span.rows
        elif number not in chosen:
            assert first == last
        else:
            seen = range(max(span.total - span.rows + 1 - (window or 10**6), 0), span.total)
            assert plan.places[first:last].tolist() == [span.pages[p // PAGE] * PAGE + p % PAGE for p in seen]
