"""Sampling, from the logits of a step to its tokens.

Knows rows of logits and sampling parameters, no sequence and no model.
"""

from .logprobs import PendingLogprobs, start_prompt_logprobs
from .metadata import Append, SamplingMetadata
from .rows import Sampled, SampleRow
from .sampler import PendingTokens, Sampler

__all__ = [
    "Append",
    "PendingLogprobs",
    "PendingTokens",
    "SampleRow",
    "Sampled",
    "Sampler",
    "SamplingMetadata",
    "start_prompt_logprobs",
]
