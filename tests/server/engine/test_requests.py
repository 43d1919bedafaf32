"""What becomes of a request, without an engine."""

import math
from typing import Any

import pytest

from peftserve.server.engine.requests import check_request, count_adapters, failed, make_sequence, refusal, timed_out
from peftserve.server.engine.scheduling.sequence import Lease, Sequence
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

VOCABULARY, MAX_LEN = 10, 6


def request(prompt: list[int], *adapters: WeightedAdapter, weight: float = 1.0, **sampling: Any) -> AddRequest:
    params = SamplingParams(**sampling)
    return AddRequest(
        request_id="one",
        prompt_token_ids=prompt,
        sampling=params,
        adapters=list(adapters),
        salt="s",
        tenant="acme",
        weight=weight,
        queue_timeout=2.5,
    )


def sequence(prompt: list[int], *adapters: WeightedAdapter, **sampling: Any) -> Sequence:
    return make_sequence(request(prompt, *adapters, **sampling), arrival=3, eos_token_ids=[9, 9], max_len=MAX_LEN)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request([]), "the prompt is empty"),
        (request([1] * 6), "a prompt of 6 tokens does not fit the context of 6"),
        (request([1, -1], WeightedAdapter("a")), "outside of the vocabulary of 10"),
        (request([1, 10]), "outside of the vocabulary of 10"),
        *((request([1], weight=weight), "must be a number over 0") for weight in (0.0, -1.0, math.inf, math.nan)),
    ],
)
def test_what_nothing_could_serve_is_refused(asked: AddRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_request(asked, VOCABULARY, MAX_LEN)


def test_what_may_be_served_passes() -> None:
    check_request(request([1] * 5), VOCABULARY, MAX_LEN)
    check_request(request([1] * 6, max_tokens=0, prompt_logprobs=0), VOCABULARY, MAX_LEN)
    check_request(request([1, 10], WeightedAdapter("a")), VOCABULARY, MAX_LEN)  # which may know more tokens


def test_a_request_becomes_a_sequence() -> None:
    made = sequence([1, 2], WeightedAdapter("a", 0.5), WeightedAdapter("a", 0.25), WeightedAdapter("a", 1.0, 2), seed=7)
    assert made.adapters == (WeightedAdapter("a", 0.75), WeightedAdapter("a", 1.0, 2))
    assert (made.prompt, made.salt, made.seed, made.arrival, made.eos_token_ids) == ([1, 2], "s", 7, 3, {9})
    assert made.limit == MAX_LEN
    assert (made.payer, made.weight) == (("acme", ("a", "a:2")), 1.0)
    assert made.latest_start == made.arrived + 2.5
    assert sequence([1]).seed != sequence([1]).seed


@pytest.mark.parametrize(
    ("prompt", "lease", "message"),
    [
        ([1, 2], Lease(("a",), (0,), (1.0,)), None),
        ([1, 2], Lease(("a",), (0,), (1.0,), prefix_length=3), None),
        ([1, 2], Lease(("a",), (0,), (1.0,), prefix_length=4), "behind the 4 that the adapter brings does not fit"),
        ([12], Lease(("a",), (0,), (1.0,), vocabularies=(13, 0)), None),
        ([13], Lease(("a",), (0,), (1.0,), vocabularies=(13, 0)), "outside of the vocabulary of 13"),
        ([5], Lease(("a",), (0,), (1.0,), vocabularies=(5,)), "outside of the vocabulary of 5"),
        ([5], Lease(("a",), (0,), (1.0,), vocabularies=(5, 0)), None),
    ],
)
def test_what_only_loaded_adapters_can_tell(prompt: list[int], lease: Lease, message: str | None) -> None:
    why = refusal(sequence(prompt, WeightedAdapter("a")), lease, VOCABULARY, MAX_LEN)
    assert (why is None) == (message is None)
    assert (message or "") in (why or "")


def test_failures_and_counts() -> None:
    mixed = sequence([1], WeightedAdapter("a"), WeightedAdapter("b"))
    output = failed(mixed, "no", "AdapterDamaged")
    assert (output.request_id, output.error, output.error_kind) == ("one", "no", "AdapterDamaged")
    late = timed_out(mixed)
    assert late.error_kind == "QueueTimeout"
    assert "waited 2.5 seconds" in (late.error or "")
    assert count_adapters([mixed, sequence([1]), sequence([1], WeightedAdapter("b"))]) == {"a": 1, "b": 2}
