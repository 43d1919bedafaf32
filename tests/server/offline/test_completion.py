"""From a sequence's outputs to its completion, without an engine."""

from typing import Any

import pytest

from peftserve.adapters.errors import AdapterDamaged
from peftserve.server.api.openai.stop_strings import StopStrings
from peftserve.server.api.openai.text_deltas import SequenceDecoder
from peftserve.server.api.text.detokenizer import WindowDetokenizer
from peftserve.server.offline.completion import RunningSequence
from peftserve.server.wire.messages import AddRequest, Logprob, SamplingParams, SequenceOutput, TokenLogprobs


def running(stop: str = "", **sampling: Any) -> RunningSequence:
    """Tokens are characters."""
    request = AddRequest(request_id="one", prompt_token_ids=[1], sampling=SamplingParams(**sampling))
    detokenizer = WindowDetokenizer(lambda ids: "".join(map(chr, ids)), frozenset())
    decoder = SequenceDecoder(detokenizer, StopStrings([stop] if stop else []))
    return RunningSequence(request, "p", "a@1", decoder)


def output(text: str, **fields: Any) -> SequenceOutput:
    return SequenceOutput(request_id="one", token_ids=[ord(character) for character in text], **fields)


def test_outputs_add_up_until_the_engine_ends_the_sequence() -> None:
    sequence = running()
    assert not sequence.push(output("he"))
    assert sequence.push(output("y", finish_reason="length"))
    completion = sequence.completion()
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("hey", [*b"hey"], "length")
    assert (completion.prompt, completion.adapter, completion.logprobs) == ("p", "a@1", None)


def test_a_stop_string_ends_it_before_the_engine_does() -> None:
    sequence = running(stop="ll")
    assert [sequence.push(output(text)) for text in ("he", "l", "l")] == [False, False, True]
    completion = sequence.completion()
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("he", "stop", "ll")


def test_logprobs_are_there_where_they_are_asked_for() -> None:
    sequence, report = running(logprobs=0), TokenLogprobs(Logprob(104, -0.5, 1))
    assert sequence.push(output("h", logprobs=[report], finish_reason="length"))
    assert sequence.completion().logprobs == [report]


def test_what_the_engine_could_not_serve_is_raised() -> None:
    with pytest.raises(ValueError, match="too long"):
        running().push(output("", error="too long"))
    with pytest.raises(AdapterDamaged, match="gone"):
        running().push(output("", error="gone", error_kind="AdapterDamaged"))
