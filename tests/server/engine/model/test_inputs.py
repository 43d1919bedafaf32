"""What a step gives the model."""

from collections.abc import Callable

import pytest
import torch

from peftserve.server.engine.model.inputs import Feed, ranges, step_inputs
from peftserve.server.engine.scheduling.batch import Span
from peftserve.server.engine.scheduling.sequence import Sequence

CPU = torch.device("cpu")
MakeSequence = Callable[..., Sequence]


@pytest.mark.parametrize(
    ("starts", "lengths"), [([], []), ([4], [0]), ([4], [3]), ([9, 0, 2], [2, 0, 3]), ([0, 7], [0, 1])]
)
def test_ranges_follow_each_other(starts: list[int], lengths: list[int]) -> None:
    expected = [i for start, n in zip(starts, lengths, strict=True) for i in range(start, start + n)]
    assert ranges(starts, lengths).tolist() == expected


def test_a_chunk_a_scored_prompt_and_a_decode(make_sequence: MakeSequence) -> None:
    chunk, scored = make_sequence([1, 2, 3, 4], [0]), make_sequence([5, 6], [1], prompt_logprobs=0)
    spans = [Span(chunk, 1, 2, False), Span(scored, 0, 2, True), Span(make_sequence([7], [2]), 0, 1, True)]
    inputs = step_inputs(spans, [0, 2, 4, 5], None, CPU)
    assert inputs.ids.tolist() == [2, 3, 5, 6, 7]
    assert inputs.positions.tolist() == [1, 2, 0, 1, 0]
    assert inputs.logit_rows is not None
    assert inputs.logit_rows.tolist() == [2, 3, 4]


def test_where_all_rows_reach_the_head_none_are_picked(make_sequence: MakeSequence) -> None:
    assert step_inputs([Span(make_sequence([7], [0]), 0, 1, True)], [0, 1], None, CPU).logit_rows is None


def test_tokens_that_only_the_device_knows_come_from_the_step_before(make_sequence: MakeSequence) -> None:
    waiting, other, anew = (make_sequence([i, i + 1], [i]) for i in (10, 20, 30))
    for sequence in (waiting, anew):
        sequence.expect()
    feed = Feed(torch.tensor([91, 92, 93]), {waiting: 2, anew: 0})
    spans = [Span(waiting, 2, 1, True), Span(other, 0, 2, True), Span(anew, 0, 3, True)]
    assert step_inputs(spans, [0, 1, 3, 6], feed, CPU).ids.tolist() == [93, 20, 21, 30, 31, 91]
