import pytest

from peftserve.server.offline.sampling import check_sampling
from peftserve.server.wire.messages import SamplingParams


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (SamplingParams(max_tokens=-1), "max_tokens must be from 0"),
        (SamplingParams(max_tokens=0), "with prompt_logprobs only"),
        (SamplingParams(temperature=float("nan")), "temperature must be from 0 to 100, and is nan"),
        (SamplingParams(top_p=0.0), "top_p must be over 0 to 1"),
        (SamplingParams(repetition_penalty=0.0), "repetition_penalty must be over 0"),
        (SamplingParams(presence_penalty=3.0), "presence_penalty must be from -2 to 2"),
        (SamplingParams(logprobs=21), "logprobs must be from 0 to 20"),
        (SamplingParams(min_tokens=17), "min_tokens must be at most max_tokens, which is 16"),
        (SamplingParams(logit_bias={1: 101.0}), "logit_bias must be from -100 to 100"),
        (SamplingParams(logit_bias={10: 1.0}), "logit_bias holds a token id outside"),
        (SamplingParams(stop_token_ids=[-1]), "stop_token_ids holds a token id outside"),
    ],
)
def test_what_is_out_of_range_is_named(sampling: SamplingParams, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sampling(sampling, vocabulary=10)


def test_what_is_in_range_passes() -> None:
    check_sampling(SamplingParams(), 10)
    check_sampling(SamplingParams(max_tokens=0, prompt_logprobs=20, top_p=1.0, logit_bias={9: -100.0}), 10)
