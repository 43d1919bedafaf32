"""From the logits of a step to its tokens. Knows rows of logits and sampling parameters, no sequence and no model."""

from .logprobs import prompt_logprobs
from .rows import SampledToken, SampleRow
from .sampler import Sampler

__all__ = ["SampleRow", "SampledToken", "Sampler", "prompt_logprobs"]
