"""The sampler's view of one sequence, and its result for a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...wire.messages import SamplingParams, TokenLogprobs

ALWAYS = 1 << 62


@dataclass(slots=True)
class SampleRow:
    """How the logits of one sequence are sampled.

    output_token_ids: its tokens so far, a list that grows as they become known. num_before: tokens before its output.
    seed: drawn by the engine where `params` has none. banned_token_ids: may not come out, such as the end of sequence
    while fewer than `min_tokens` are out, which is `banned_before`. Ids outside the vocabulary are ignored.
    """

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    seed: int
    banned_token_ids: Sequence[int] = ()
    banned_before: int = ALWAYS
    num_before: int = 0


class Sampled(NamedTuple):
    """The tokens of a step. token_ids: one a row. logprobs: by row, of those that ask for them."""

    token_ids: list[int]
    logprobs: Mapping[int, TokenLogprobs]
