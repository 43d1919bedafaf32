"""What a step gives the model."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from peftserve.kernels.device.step_memory import StepMemory
from peftserve.server.engine.model.inputs import Feed, InputMemory, StepInputs, ranges
from peftserve.server.engine.model.rows import RunningRows
from peftserve.server.engine.scheduling.batch import Batch, Chunk, Lineup
from peftserve.server.engine.scheduling.sequence import Sequence as EngineSequence

CPU = torch.device("cpu")
MakeSequence = Callable[..., EngineSequence]


class Steps:
    def __init__(self) -> None:
        self.inputs = InputMemory(StepMemory(CPU), 16, 8)
        self._rows = RunningRows()

    def run(self, spans: Sequence[Chunk], feed: Feed | None = None, graph_rows: int | None = None) -> StepInputs:
        return self.run_batch(Batch(spans), feed, graph_rows)

    def run_batch(self, batch: Batch, feed: Feed | None, graph_rows: int | None) -> StepInputs:
        self.inputs.memory.begin()
        written = self.inputs.write(self._rows.rows_of(batch), feed, graph_rows)
        self.inputs.memory.send()
        written.feed()
        return written.inputs


@pytest.mark.parametrize(
    ("starts", "lengths"), [([], []), ([4], [0]), ([4], [3]), ([9, 0, 2], [2, 0, 3]), ([0, 7], [0, 1])]
)
def test_ranges_follow_each_other(starts: list[int], lengths: list[int]) -> None:
    expected = [i for start, n in zip(starts, lengths, strict=True) for i in range(start, start + n)]
    assert ranges(starts, lengths).tolist() == expected


def test_a_chunk_a_scored_prompt_and_a_decode(make_sequence: MakeSequence) -> None:
    chunk, scored = make_sequence([1, 2, 3, 4], [0]), make_sequence([5, 6], [1], prompt_logprobs=0)
    inputs = Steps().run(
        [Chunk(chunk, 1, 2, False), Chunk(scored, 0, 2, True), Chunk(make_sequence([7], [2]), 0, 1, True)]
    )
    assert inputs.ids.tolist() == [2, 3, 5, 6, 7]
    assert inputs.positions.tolist() == [1, 2, 0, 1, 0]
    assert inputs.logit_rows is not None
    assert inputs.logit_rows.tolist() == [2, 3, 4]


def test_where_all_rows_reach_the_head_none_are_picked(make_sequence: MakeSequence) -> None:
    assert Steps().run([Chunk(make_sequence([7], [0]), 0, 1, True)]).logit_rows is None
    scored = make_sequence([5, 6], [1], prompt_logprobs=0)
    assert Steps().run([Chunk(scored, 0, 2, True)]).logit_rows is None


def test_tokens_that_only_the_device_knows_come_from_the_step_before(make_sequence: MakeSequence) -> None:
    waiting, other, anew = (make_sequence([i, i + 1], [i]) for i in (10, 20, 30))
    for sequence in (waiting, anew):
        sequence.expect()
    feed = Feed(torch.tensor([91, 92, 93]), {waiting: 2, anew: 0})
    spans = [Chunk(waiting, 2, 1, True), Chunk(other, 0, 2, True), Chunk(anew, 0, 3, True)]
    assert Steps().run(spans, feed).ids.tolist() == [93, 20, 21, 30, 31, 91]


def test_decodes_after_decodes_take_all_tokens_as_they_are(make_sequence: MakeSequence) -> None:
    """In the order of the step before, in another one, and where some have ended."""
    sequences = [make_sequence([i, i], [i]) for i in range(3)]
    for sequence in sequences:
        sequence.expect()
    feed = Feed(torch.tensor([91, 92, 93]), {sequence: row for row, sequence in enumerate(sequences)})
    steps = Steps()
    for order in ([0, 1, 2], [0, 1, 2], [2, 0, 1], [0, 2], [0]):
        spans = [Chunk(sequences[i], 2, 1, True) for i in order]
        for graph_rows in (None, 4):
            inputs = steps.run(spans, feed, graph_rows)
            assert inputs.ids[: len(order)].tolist() == [91 + i for i in order]
            assert inputs.positions[: len(order)].tolist() == [2] * len(order)


@pytest.mark.parametrize("graph_rows", [None, 4])
def test_decodes_that_go_on_take_all_tokens_of_the_step_before(
    make_sequence: MakeSequence, graph_rows: int | None
) -> None:
    lineup = Lineup(make_sequence([i, i], [i]) for i in range(3))
    for sequence in lineup.sequences:
        sequence.expect()
    steps, feed = Steps(), Feed(torch.tensor([91, 92, 93]), lineup.places)
    for end in (3, 4):
        inputs = steps.run_batch(Batch.of_decodes(lineup, np.array([end, end, end + 5])), feed, graph_rows)
        assert inputs.ids.tolist() == [91, 92, 93, *[0] * ((graph_rows or 3) - 3)]
        assert inputs.positions[:3].tolist() == [end - 1, end - 1, end + 4]


def test_a_graph_finds_its_inputs_at_one_place(make_sequence: MakeSequence) -> None:
    """And nothing of earlier steps in the rows beyond its own."""
    steps = Steps()
    found = [
        steps.run([Chunk(make_sequence([7, 8], [i]), 1, 1, True) for i in range(count)], None, 4) for count in (4, 2, 3)
    ]
    assert found[-1].ids.tolist() == [8, 8, 8, 0]
    assert found[-1].positions.tolist() == [1, 1, 1, 0]
    places = {(inputs.ids.data_ptr(), inputs.positions.data_ptr()) for inputs in found}
    assert places == {tuple(tensor.data_ptr() for tensor in steps.inputs.of_graph(8)[:2])}
