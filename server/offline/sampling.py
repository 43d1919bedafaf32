"""Checks of sampling parameters that a Python user gives: the ranges that the server's routes keep, too."""

from collections.abc import Sequence
from typing import NamedTuple

from ..wire.messages import SamplingParams


class _Range(NamedTuple):
    """Numbers from `low` to `high`, both included. open_below: whether `low` itself is out."""

    low: float
    high: float
    open_below: bool = False

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.open_below and value == self.low)

    def __str__(self) -> str:
        return f"{'over' if self.open_below else 'from'} {self.low:g} to {self.high:g}"


_COUNT = _Range(0, (1 << 31) - 1)
_REPORT = _Range(0, 20)
_RANGES = {
    "max_tokens": _COUNT,
    "min_tokens": _COUNT,
    "temperature": _Range(0, 100),
    "top_p": _Range(0, 1, open_below=True),
    "top_k": _COUNT,
    "min_p": _Range(0, 1),
    "repetition_penalty": _Range(0, 100, open_below=True),
    "presence_penalty": _Range(-2, 2),
    "frequency_penalty": _Range(-2, 2),
    "logprobs": _REPORT,
    "prompt_logprobs": _REPORT,
}
_BIAS = _Range(-100, 100)


def check_sampling(sampling: SamplingParams, vocabulary: int) -> None:
    """Raise ValueError for a parameter out of its range, or a token id outside of the vocabulary."""
    for name, allowed in _RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not allowed.holds(value):
            raise ValueError(f"{name} must be {allowed}, and is {value}")
    for bias in sampling.logit_bias.values():
        if not _BIAS.holds(bias):
            raise ValueError(f"logit_bias must be {_BIAS}, and holds {bias}")
    if sampling.max_tokens == 0 and sampling.prompt_logprobs is None:
        raise ValueError("max_tokens may be 0 with prompt_logprobs only")
    if sampling.min_tokens > sampling.max_tokens:
        raise ValueError(f"min_tokens must be at most max_tokens, which is {sampling.max_tokens}")
    _check_ids("stop_token_ids", sampling.stop_token_ids, vocabulary)
    _check_ids("logit_bias", list(sampling.logit_bias), vocabulary)


def _check_ids(name: str, token_ids: Sequence[int], vocabulary: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocabulary):
        raise ValueError(f"{name} holds a token id outside of the vocabulary of {vocabulary}")
