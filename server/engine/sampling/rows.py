"""The sampler's view of one sequence, and its result for a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...wire.messages import SamplingParams, TokenLogprobs

ALWAYS = 1 << 62


class Form(Protocol):
    """What an output must be. Its tokens have been followed when it is asked."""

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Set the bits of the tokens that may come next in a mask of zeros: bit i % 32 of word i // 32 for token i."""


@dataclass(slots=True)
class SampleRow:
    """How the logits of one sequence are sampled.

    output_token_ids: its tokens so far, a list that grows as they become known. num_before: tokens before its output.
    seed: drawn by the engine where `params` has none. banned_token_ids: may not come out, such as the end of sequence
    while fewer than `min_tokens` are out, which is `banned_before`. Ids outside the vocabulary are ignored.
    form: leaves no other tokens than it allows; None for any.
    """

    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    seed: int
    banned_token_ids: Sequence[int] = ()
    banned_before: int = ALWAYS
    num_before: int = 0
    form: Form | None = None


class Sampled(NamedTuple):
    """The tokens of a step.

    token_ids: one a row. logprobs: by row, of those that ask for them. unsound: the rows whose logits are no numbers,
    and whose tokens mean nothing.
    """

    token_ids: list[int]
    logprobs: Mapping[int, TokenLogprobs]
    unsound: frozenset[int] = frozenset()
