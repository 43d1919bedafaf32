"""From the logits of a step to its tokens. Knows rows of logits and sampling parameters, no sequence and no model."""

from .logprobs import PendingLogprobs, start_prompt_logprobs
from .parameters import Append, Parameters
from .rows import Sampled, SampleRow
from .sampler import Sampler, Sampling

__all__ = [
    "Append",
    "Parameters",
    "PendingLogprobs",
    "SampleRow",
    "Sampled",
    "Sampler",
    "Sampling",
    "start_prompt_logprobs",
]
