import pytest

from peftserve.server.api.openai.logprobs import completion_logprobs
from peftserve.server.api.openai.text_deltas import ShownToken
from peftserve.server.wire.messages import Logprob, TokenLogprobs

TOP = [Logprob(ord("a"), -0.1, 1), Logprob(ord("b"), -1.0, 2)]
RARE = Logprob(ord("z"), -9.0, 30)


@pytest.mark.parametrize(
    ("chosen", "num_top", "shown"),
    [
        (TOP[0], 2, {"a": -0.1, "b": -1.0}),
        (TOP[1], 2, {"a": -0.1, "b": -1.0}),
        (TOP[1], 1, {"a": -0.1, "b": -1.0}),
        (RARE, 2, {"a": -0.1, "b": -1.0, "z": -9.0}),
        (RARE, 0, {"z": -9.0}),
    ],
)
def test_the_token_that_came_is_among_those_that_are_shown(chosen, num_top, shown):
    [top] = completion_logprobs(
        [ShownToken(chosen.token_id, 0, TokenLogprobs(chosen, TOP))], lambda token_id: bytes([token_id]), num_top
    ).top_logprobs
    assert list(top.items()) == list(shown.items())
