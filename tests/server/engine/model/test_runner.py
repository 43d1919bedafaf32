"""What the runner makes of a batch: rows, logits and segments."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from peftserve.kernels.attention.torch import backend as torch_attention
from peftserve.kernels.bypass.layout import Capacity, Segment, StepKind
from peftserve.server.engine.model.kv_cache import KVCache
from peftserve.server.engine.sampling import Append
from peftserve.server.engine.scheduling.batch import Batch, Chunk
from peftserve.server.engine.scheduling.sequence import Lease, Sequence

MakeSequence = Callable[..., Sequence]


class Harness:
    def __init__(self, toy: SimpleNamespace) -> None:
        self.model = toy.Model()
        self.backend, self.hooks = toy.NoBackend(), toy.NoHooks()
        cache = KVCache({0: toy.layer(4, 2)}, 32, 4, torch.float32, torch.device("cpu"))
        self.runner = self.model.connected(cache, self.hooks, self.backend)


@pytest.fixture
def harness(toy: SimpleNamespace) -> Any:
    return Harness(toy)


def leased(sequence: Sequence, *parts: tuple[int, float]) -> Sequence:
    slots, weights = zip(*parts, strict=True) if parts else ((), ())
    sequence.lease = Lease(tuple(map(str, slots)), tuple(slots), tuple(weights))
    return sequence


def test_logits_are_of_the_rows_that_need_them(harness: Harness, make_sequence: MakeSequence) -> None:
    """The last token of what is sampled, every token of a scored prompt, none of a chunk in between."""
    chunk = make_sequence([1] * 8, [0, 1])
    scored = make_sequence([2, 3, 4], [2], prompt_logprobs=0)
    last = make_sequence([5, 6], [3])
    spans = [Chunk(chunk, 0, 5, False), Chunk(scored, 0, 3, True), Chunk(last, 0, 2, True)]
    result = harness.runner.run(Batch(spans))
    assert result.offsets == [0, 0, 3, 4]
    expected = torch.cat([harness.model.expected([2, 3, 4]), harness.model.expected([5, 6])[-1:]])
    torch.testing.assert_close(result.logits, expected.float(), atol=1e-5, rtol=1e-5)


def test_output_tokens_of_a_scored_prompt_need_one_row(make_sequence: MakeSequence) -> None:
    scored = make_sequence([1, 2], [0], prompt_logprobs=0)
    scored.expect()
    scored.append(3)
    assert Chunk(scored, 2, 1, True).num_logit_rows == 1
    assert Chunk(scored, 0, 3, True).num_logit_rows == 3


def test_a_step_without_logits_runs(harness: Harness, make_sequence: MakeSequence) -> None:
    result = harness.runner.run(Batch([Chunk(make_sequence([1] * 8, [0, 1]), 0, 5, False)]))
    assert result.logits.shape[0] == 0


def test_neighbours_with_equal_adapters_are_one_segment(harness: Harness, make_sequence: MakeSequence) -> None:
    parts: list[list[tuple[int, float]]] = [[], [(1, 1.0)], [(1, 1.0)], [(1, 0.5)], [(0, 0.2), (2, 0.8)]]
    sequences = [leased(make_sequence([1] * 4, [i]), *part) for i, part in enumerate(parts)]
    spans = [Chunk(s, 0, n, n == 4) for s, n in zip(sequences, (4, 3, 4, 4, 2), strict=True)]
    harness.runner.run(Batch(spans))
    [(tokens, logits)] = harness.backend.begun
    assert tokens == [
        Segment(1, 1.0, 4, 11),
        Segment(1, 0.5, 11, 15),
        Segment(0, 0.2, 15, 17),
        Segment(2, 0.8, 15, 17),
    ]
    assert logits == [Segment(1, 1.0, 1, 2), Segment(1, 0.5, 2, 3)]
    assert harness.hooks.active


def test_a_step_of_the_base_alone_begins_no_bypass(harness: Harness, make_sequence: MakeSequence) -> None:
    harness.hooks.active = True
    harness.runner.run(Batch([Chunk(leased(make_sequence([1], [0])), 0, 1, True)]))
    assert not harness.backend.begun
    assert not harness.hooks.active


def test_a_step_that_fails_leaves_nothing_behind(harness: Harness, make_sequence: MakeSequence) -> None:
    forgotten = []
    harness.hooks.end = lambda: forgotten.append(True)
    with pytest.raises(IndexError):
        harness.runner.run(Batch([Chunk(make_sequence([10_000], [0]), 0, 1, True)]))
    assert forgotten
    assert not harness.model.attention.side


@pytest.mark.parametrize("block", [1, 3, 4, 100])
def test_a_long_chunk_after_a_context_runs_in_blocks(
    harness: Harness, make_sequence: MakeSequence, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(torch_attention, "MASKED_ROWS", block)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8]
    sequence = make_sequence(tokens, [4, 0, 2, 5, 1], prompt_logprobs=0)
    harness.runner.run(Batch([Chunk(sequence, 0, 6, False)]))
    result = harness.runner.run(Batch([Chunk(sequence, 6, 13, True)]))
    torch.testing.assert_close(result.logits, harness.model.expected(tokens)[6:].float(), atol=1e-5, rtol=1e-5)


def test_a_step_that_graphs_have_no_room_for_is_launched(
    harness: Harness, make_sequence: MakeSequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins again without a capacity, and gives the same."""
    begun: list[tuple[int, Capacity | None]] = []
    one, two = Capacity(1, StepKind.EACH), Capacity(2, StepKind.EACH)

    def begin(tokens: list[Segment], logits: list[Segment], *, capacity: Capacity | None = None) -> bool:
        begun.append((len(tokens), capacity))
        return capacity is None or len(tokens) < 2

    replayed = Mock()

    def record(run: Callable[[], torch.Tensor]) -> Any:
        recording = Mock(output=run(), side_effect=lambda: recording.output.copy_(run()))
        replayed.attach_mock(recording, "graph")
        return recording

    monkeypatch.setattr(harness.backend, "begin", begin)
    monkeypatch.setattr(harness.backend, "run_in_the_backend", lambda tokens: True, raising=False)
    monkeypatch.setattr(harness.backend, "kind_of", lambda tokens: StepKind.EACH, raising=False)
    harness.runner.capture_graphs(Mock(record=record), most_rows=2)
    begun.clear()
    tokens = [make_sequence([3, 4, 5], [0]), make_sequence([6, 7, 8], [1])]
    for count, wanted in ((1, [(1, one)]), (2, [(2, two), (2, None)])):
        spans = [Chunk(leased(sequence, (i, 1.0)), 0, 3, True) for i, sequence in enumerate(tokens[:count])]
        harness.runner.run(Batch(spans))  # their keys
        begun.clear()
        result = harness.runner.run(Batch([Chunk(sequence, 2, 1, True) for sequence in tokens[:count]]))
        assert begun == wanted
        expected = torch.stack([harness.model.expected(sequence.tokens)[-1] for sequence in tokens[:count]])
        torch.testing.assert_close(result.logits, expected.float(), atol=1e-5, rtol=1e-5)
    assert len(replayed.mock_calls) == 1


def test_what_else_goes_over_is_there_with_the_step(harness: Harness, make_sequence: MakeSequence) -> None:
    sent: list[torch.Tensor] = []

    def also(append: Append) -> None:
        sent.append(append(np.array([7, 8, 9])))

    spans = [Chunk(make_sequence([3, 4], [0]), 0, 2, True)]
    result = harness.runner.run(Batch(spans), None, also)
    assert [tensor.tolist() for tensor in sent] == [[7, 8, 9]]
    torch.testing.assert_close(result.logits, harness.model.expected([3, 4])[-1:].float(), atol=1e-5, rtol=1e-5)
