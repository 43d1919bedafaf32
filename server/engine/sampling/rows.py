"""What the sampler is given for a row of logits, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ...wire.messages import SamplingParams, TokenLogprobs


@dataclass(slots=True)
class SampleRow:
    """One row of logits that is to be sampled.

    seed: drawn by the engine where `params` has none. banned_token_ids: may not come out, such as the end of
    sequence while fewer than `min_tokens` are out; the engine fills it. Ids outside the vocabulary are ignored.
    """

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    seed: int
    banned_token_ids: Sequence[int] = ()


class SampledToken(NamedTuple):
    """logprobs: None unless the row asks for them."""

    token_id: int
    logprobs: TokenLogprobs | None
