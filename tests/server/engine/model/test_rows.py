"""Rows of batches, alone and after others."""

from collections.abc import Callable

import numpy as np

from peftserve.kernels.bypass.layout import Segment
from peftserve.server.engine.model.rows import RunningRows, StepRows
from peftserve.server.engine.scheduling.batch import Batch, Chunk, Lineup
from peftserve.server.engine.scheduling.sequence import Lease, Sequence

MakeSequence = Callable[..., Sequence]


def leased(sequence: Sequence, *parts: tuple[int, float]) -> Sequence:
    slots, weights = zip(*parts, strict=True) if parts else ((), ())
    sequence.lease = Lease(tuple(map(str, slots)), tuple(slots), tuple(weights))
    return sequence


def facts(rows: StepRows) -> list[object]:
    columns = [column.tolist() for column in rows.attention.columns[:3]]
    arrays = [rows.starts.tolist(), rows.counts.tolist()]
    return [*arrays, *columns, rows.attention.columns[3], rows.offsets, rows.logit_offsets, rows.tokens, rows.logits]


def test_chunks_and_decodes(make_sequence: MakeSequence) -> None:
    chunk, scored, last = make_sequence([1] * 8, [0]), make_sequence([2] * 3, [1], prompt_logprobs=0), None
    last = leased(make_sequence([5, 6], [2, 3]), (4, 0.5), (1, 2.0))
    rows = RunningRows().rows_of(Batch([Chunk(chunk, 0, 5, False), Chunk(scored, 0, 3, True), Chunk(last, 0, 2, True)]))
    assert len(rows) == 10
    assert not rows.one_each
    assert rows.offsets == [0, 5, 8, 10]
    assert rows.logit_offsets == [0, 0, 3, 4]
    assert rows.tokens == [Segment(4, 0.5, 8, 10), Segment(1, 2.0, 8, 10)]
    assert rows.logits == [Segment(4, 0.5, 3, 4), Segment(1, 2.0, 3, 4)]
    assert [list(span) for span in rows.attention] == [[0, 5, 5, [0]], [5, 3, 3, [1]], [8, 2, 2, [2, 3]]]


def test_decodes_after_decodes_are_as_they_are_alone(make_sequence: MakeSequence) -> None:
    """Sequences come, go and change places; a prefill is between them."""
    sequences = [leased(make_sequence([1] * (3 + i), [i]), *[(i % 2, 1.0)] * (i > 0)) for i in range(4)]
    running = RunningRows()
    orders = [[0, 1, 2], [0, 1, 2], [0, 1, 2], [1, 2], [2, 1], [2, 1, 3], [2, 1, 3]]
    lineups = {tuple(order): Lineup(sequences[i] for i in order) for order in orders}
    prefill = Batch([Chunk(sequences[3], 0, 6, True), Chunk(sequences[0], 12, 1, True)])
    for number, order in enumerate(orders):
        for sequence in sequences if number == 2 else ():
            sequence.pages.append(9)
        spans = [Chunk(sequences[i], 2 + i + number, 1, True) for i in order]
        decodes = Batch.of_decodes(lineups[tuple(order)], np.array([span.end for span in spans]))
        if number == 5:
            assert facts(running.rows_of(prefill)) == facts(RunningRows().rows_of(prefill))
        rows = running.rows_of(decodes)
        assert rows.one_each
        assert facts(rows) == facts(RunningRows().rows_of(Batch(spans)))


def test_pages_are_those_of_the_sequence_now(make_sequence: MakeSequence) -> None:
    sequence, running = make_sequence([1, 2], [5]), RunningRows()
    running.rows_of(Batch([Chunk(sequence, 1, 1, True)]))
    sequence.pages = [7, 8]
    assert running.rows_of(Batch([Chunk(sequence, 2, 1, True)])).attention.columns[3] == [[7, 8]]


def test_a_lease_that_changes_changes_the_segments(make_sequence: MakeSequence) -> None:
    sequence, running = leased(make_sequence([1, 2], [5]), (3, 1.0)), RunningRows()
    assert running.rows_of(Batch([Chunk(sequence, 1, 1, True)])).tokens == [Segment(3, 1.0, 0, 1)]
    leased(sequence, (4, 1.0))
    assert running.rows_of(Batch([Chunk(sequence, 2, 1, True)])).tokens == [Segment(4, 1.0, 0, 1)]


def test_an_adapter_that_is_invoked_works_from_there_on(make_sequence: MakeSequence) -> None:
    sequence = leased(make_sequence([1] * 6, [5]), (3, 1.0))
    sequence.active_from = 4
    assert RunningRows().rows_of(Batch([Chunk(sequence, 1, 5, True)])).tokens == [Segment(3, 1.0, 3, 5)]
    assert RunningRows().rows_of(Batch([Chunk(sequence, 1, 2, False)])).tokens == []


def test_nothing() -> None:
    rows = RunningRows().rows_of(Batch([]))
    assert (len(rows), rows.tokens, list(rows.attention)) == (0, [], [])
    assert rows.starts.dtype == np.int64


def test_a_prompt_that_is_scored_a_token_at_a_time_runs_like_a_decode(make_sequence: MakeSequence) -> None:
    """And an adapter that is invoked within it begins there."""
    sequence, running = leased(make_sequence([1] * 4, [5], prompt_logprobs=0), (3, 1.0)), RunningRows()
    sequence.active_from = 2
    steps = [running.rows_of(Batch([Chunk(sequence, start, 1, start == 3)])) for start in range(4)]
    assert all(rows.one_each for rows in steps)
    assert [len(rows.tokens) for rows in steps] == [0, 0, 1, 1]
