"""From logits to outputs, with logits of one's choice."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from peftserve.server.engine.completion import PendingStep
from peftserve.server.engine.model.runner import StepLogits
from peftserve.server.engine.sampling import Sampler
from peftserve.server.engine.scheduling.batch import Batch, Chunk
from peftserve.server.engine.scheduling.sequence import UNKNOWN, Sequence
from peftserve.server.wire.messages import SamplingParams

VOCAB, EOS = 8, 7
MakeSequence = Callable[..., Sequence]


def sequence(prompt: list[int], name: str = "one", **sampling: Any) -> Sequence:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 5, **sampling})
    return Sequence(name, prompt, params, (), salt="", seed=0, eos_token_ids=frozenset([EOS]), max_len=10)


def one_hot(*tokens: int) -> torch.Tensor:
    """Rows of logits whose best token is the given one."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), VOCAB).float() * 9


def logits_of(chunks: list[Chunk], *tokens: int) -> StepLogits:
    offsets = [0]
    for chunk in chunks:
        offsets.append(offsets[-1] + chunk.num_logit_rows)
    assert offsets[-1] == len(tokens)
    return StepLogits(one_hot(*tokens) if tokens else torch.empty(0, VOCAB), offsets)


def begin(chunks: list[Chunk], sampler: Sampler | None = None) -> PendingStep:
    """A step of sequences that have just taken their seats."""
    for seat, chunk in enumerate(chunks):
        chunk.sequence.seat = seat
    sampler = sampler or Sampler(VOCAB, torch.device("cpu"), len(chunks))
    step = PendingStep(sampler, Batch(chunks, started=[chunk.sequence for chunk in chunks]))
    step.tell(torch.from_numpy)
    return step


def start(chunks: list[Chunk], *tokens: int) -> PendingStep:
    """What the pipeline does with a step, up to its end."""
    step = begin(chunks)
    step.launched(logits_of(chunks, *tokens))
    expect(chunks)
    step.tokens_known()
    return step


def expect(chunks: list[Chunk]) -> None:
    for chunk in chunks:
        chunk.sequence.num_computed = chunk.end
        if chunk.samples:
            chunk.sequence.expect()


def update(chunks: list[Chunk], *tokens: int) -> dict[str, Any]:
    outputs, ended, _ = start(chunks, *tokens).finish()
    assert {sequence.request_id for sequence in ended} == {o.request_id for o in outputs if o.finish_reason}
    assert len({output.request_id for output in outputs}) == len(outputs)
    return {output.request_id: output for output in outputs}


def test_only_finished_prompts_say_something() -> None:
    chunks = [
        Chunk(sequence([1, 2, 3], "chunk"), 0, 2, samples=False),
        Chunk(sequence([1, 2], "prompt"), 0, 2, samples=True),
        Chunk(sequence([4], "other"), 0, 1, samples=True),
    ]
    outputs = update(chunks, 5, 6)
    assert {name: output.token_ids for name, output in outputs.items()} == {"prompt": [5], "other": [6]}
    assert chunks[1].sequence.tokens == [1, 2, 5]


def test_facts_of_the_start_come_with_the_first_output_only() -> None:
    one = sequence([1])
    one.num_cached, one.queue_seconds = 0, 0.5
    first = update([Chunk(one, 0, 1, samples=True)], 3)["one"]
    second = update([Chunk(one, 1, 1, samples=True)], 4)["one"]
    assert (first.cached_tokens, first.queue_seconds) == (0, 0.5)
    assert (second.cached_tokens, second.queue_seconds) == (None, None)


@pytest.mark.parametrize(
    ("sampling", "token", "reason", "stop"),
    [
        ({}, 3, None, None),
        ({}, EOS, "stop", EOS),
        ({"ignore_eos": True}, EOS, None, None),
        ({"stop_token_ids": [3]}, 3, "stop", 3),
        ({"stop_token_ids": [3], "ignore_eos": True}, 3, "stop", 3),
        ({"max_tokens": 1}, 3, "length", None),
        ({"max_tokens": 1}, EOS, "stop", EOS),
    ],
)
def test_what_ends_a_sequence(sampling: dict[str, Any], token: int, reason: str | None, stop: int | None) -> None:
    output = update([Chunk(sequence([1], **sampling), 0, 1, samples=True)], token)["one"]
    assert (output.token_ids, output.finish_reason, output.stop_token_id) == ([token], reason, stop)


def test_the_context_is_never_exceeded() -> None:
    output = update([Chunk(sequence([1] * 9), 0, 9, samples=True)], 3)["one"]
    assert output.finish_reason == "length"


def test_no_end_comes_before_min_tokens() -> None:
    one = sequence([1], min_tokens=2, stop_token_ids=[3])
    tokens = []
    for position, wanted in enumerate([EOS, 3, EOS]):
        output = update([Chunk(one, position, 1, samples=True)], wanted)["one"]
        tokens += output.token_ids
    assert not {EOS, 3} & set(tokens[:2])
    assert (tokens[2], output.finish_reason) == (EOS, "stop")


def test_where_every_token_would_end_it_min_tokens_still_holds() -> None:
    """Some token has to come out, and it is one that may not end the sequence yet."""
    one = sequence([1], min_tokens=2, stop_token_ids=list(range(VOCAB)))
    reasons = [update([Chunk(one, i, 1, samples=True)], EOS)["one"].finish_reason for i in range(3)]
    assert reasons == [None, None, "stop"]


def test_prompt_logprobs_are_put_together_over_chunks_and_a_preemption() -> None:
    prompt = [1, 2, 3, 4, 5]
    one = sequence(prompt, prompt_logprobs=1)
    following = [2, 3, 4, 5]
    assert not update([Chunk(one, 0, 2, samples=False)], *following[:2])
    one.num_computed = 0  # preempted: it begins anew, in other chunks
    assert not update([Chunk(one, 0, 1, samples=False)], following[0])
    assert not update([Chunk(one, 1, 3, samples=False)], *following[1:])
    output = update([Chunk(one, 4, 1, samples=True)], 6)["one"]
    assert output.token_ids == [6]
    none, *reports = output.prompt_logprobs
    assert none is None
    assert [report.chosen.token_id for report in reports] == following
    assert [report.chosen.rank for report in reports] == [1, 1, 1, 1]
    after = update([Chunk(one, 5, 1, samples=True)], 6)["one"]
    assert after.prompt_logprobs is None


def test_a_prompt_may_only_be_scored() -> None:
    one = sequence([1, 2, 3], max_tokens=0, prompt_logprobs=0)
    assert not update([Chunk(one, 0, 2, samples=False)], 2, 3)
    output = update([Chunk(one, 2, 1, samples=False)], 4)["one"]
    assert (output.token_ids, output.finish_reason) == ([], "length")
    assert len(output.prompt_logprobs) == 3


def test_a_sequence_that_is_over_says_nothing() -> None:
    one, other = sequence([1], "one", prompt_logprobs=0), sequence([2], "other")
    chunks = [Chunk(one, 0, 1, samples=True), Chunk(other, 0, 1, samples=True)]
    other.is_over = True
    assert [output.token_ids for output in start(chunks, 3, 4).finish().outputs] == [[3]]
    started = start([Chunk(one, 1, 1, samples=True)], 5)
    one.is_over = True
    assert started.finish() == ([], [], [])
    assert one.output == [3]


def test_tokens_are_chosen_behind_the_launch_unless_they_need_those_before() -> None:
    for sampling, at_once in (
        ({}, True),
        ({"min_tokens": 3, "logit_bias": {1: 2.0}}, True),
        ({"presence_penalty": 1.0}, False),
    ):
        one = sequence([1], **sampling)
        one.output, one.tokens = [3], [1, 3]
        chunks = [Chunk(one, 1, 1, samples=True)]
        step = begin(chunks)
        one.tokens[-1] = UNKNOWN
        one.output.pop()
        step.launched(logits_of(chunks, 3))
        assert (step._sampling is not None) == at_once
        one.append(3)
        expect(chunks)
        step.tokens_known()
        step.finish()
        assert one.tokens[:2] == [1, 3]


def test_a_penalty_sees_the_token_that_was_unknown_at_the_launch() -> None:
    one = sequence([1], presence_penalty=2.0, temperature=0.0)
    one.tokens, one.output = [1, UNKNOWN], []
    chunks = [Chunk(one, 1, 1, samples=True)]
    step = begin(chunks)
    close = torch.zeros(1, VOCAB)
    close[0, 3], close[0, 5] = 9.0, 8.0
    step.launched(StepLogits(close, [0, 1]))
    one.append(3)
    expect(chunks)
    step.tokens_known()
    assert [output.token_ids for output in step.finish().outputs] == [[5]]


def test_rows_of_a_prompt_that_are_only_scored_are_not_sampled() -> None:
    chunks = [
        Chunk(sequence([1, 2, 3], "scored", prompt_logprobs=0), 0, 3, samples=True),
        Chunk(sequence([4], "plain"), 0, 1, samples=True),
    ]
    outputs = update(chunks, 2, 3, 6, 5)
    assert {name: output.token_ids for name, output in outputs.items()} == {"scored": [6], "plain": [5]}


def test_the_tokens_feed_the_next_step() -> None:
    chunks = [
        Chunk(sequence([1, 2, 3], "chunk"), 0, 2, samples=False),
        Chunk(sequence([1, 2], "one"), 0, 2, samples=True),
        Chunk(sequence([4], "two"), 0, 1, samples=True),
    ]
    feed = start(chunks, 5, 6).feed
    assert {s.request_id: int(feed.token_ids[row]) for s, row in feed.rows.items()} == {"one": 5, "two": 6}
