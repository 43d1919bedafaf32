"""Workloads: which models are asked for how often, how long prompts and outputs are, and the literature's settings."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Integers = NDArray[np.int64]
SKEW = 1.5  # Punica's: how many times the requests of the next model each model has
SIGMA, SHIFT, SCALE, LONGEST = 0.8, -1.0, 18.0, 2048  # Punica's prompts are lognormal, of ShareGPT's shape


@dataclass(frozen=True)
class Range:
    """A range of lengths in tokens, from least to most, both included; all are equally likely."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"

    def draw(self, count: int, random: Generator) -> Integers:
        return random.integers(self.least, self.most, size=count, endpoint=True)


PROMPT_TOKENS, OUTPUT_TOKENS = Range(128, 128), Range(64, 64)


@dataclass(frozen=True)
class Workload:
    """The parameters that a trace is drawn from.

    rate: requests a second in an open loop; None in a closed loop of `concurrency` clients. cv: coefficient of
    variation of the gaps between arrivals. alpha: exponent of the popularities zipf and power. lengths: "punica", or
    None for the two ranges.
    """

    models: tuple[str, ...]
    num_requests: int
    seed: int = 0
    popularity: str = "distinct"
    alpha: float = 1.0
    rate: float | None = None
    cv: float = 1.0
    concurrency: int = 16
    lengths: str | None = None
    prompt_tokens: Range = PROMPT_TOKENS
    output_tokens: Range = OUTPUT_TOKENS

    def settings(self) -> dict[str, Any]:
        """Return the parameters as JSON, without those that have no effect on this workload."""
        settings = {name: str(value) if isinstance(value, Range) else value for name, value in vars(self).items()}
        idle = {"concurrency"} if self.rate is not None else {"rate", "cv"}
        idle |= {"prompt_tokens", "output_tokens"} if self.lengths else {"lengths"}
        idle |= set() if self.popularity in ("power", "zipf") else {"alpha"}
        return {name: value for name, value in settings.items() if name not in idle}


# What each preset sets unless the command says otherwise, by the names of the flags.
WORKLOADS: Mapping[str, Mapping[str, Any]] = {
    "s-lora": {
        "seed": 42,
        "rate": 2.0,
        "cv": 1.0,
        "duration": 300.0,
        "popularity": "power",
        "alpha": 1.0,
        "prompt_tokens": Range(8, 511),
        "output_tokens": Range(8, 511),
        "slo_ttft": 6.0,
    },
    "punica": {"concurrency": 32, "num_requests": 1024, "popularity": "distinct", "lengths": "punica"},
}


def parse_range(text: str) -> Range:
    """Return the range that `128` or `8-512` stands for.

    Raises ValueError, whose text ends the sentence "'x' is not ...".
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if not match:
        raise ValueError("a number of tokens such as 128, or a range such as 8-512")
    found = Range(int(match[1]), int(match[2] or match[1]))
    if found.least < 1:
        raise ValueError("1 or more")
    if found.least > found.most:
        raise ValueError("a range from less to more")
    return found


def punica_lengths(count: int, random: Generator) -> tuple[Integers, Integers]:
    """Draw Punica's prompt and output lengths in tokens, (count,) each.

    Prompt and output together are uniform below 2048, but an output has 2 tokens at least.
    """
    drawn = np.exp(SIGMA * random.standard_normal(count)) * SCALE + SHIFT
    prompts = np.clip(drawn, 1, LONGEST - 2).astype(np.int64)
    return prompts, np.maximum(prompts + 2, random.integers(0, LONGEST, size=count)) - prompts


def identical(_models: int, count: int, _alpha: float, _random: Generator) -> Integers:
    """Ask for the first model only."""
    return np.zeros(count, dtype=np.int64)


def distinct(models: int, count: int, _alpha: float, _random: Generator) -> Integers:
    """Ask for each model in turn, from the first again where requests are more than models."""
    return np.arange(count, dtype=np.int64) % models


def uniform(models: int, count: int, _alpha: float, random: Generator) -> Integers:
    """Ask for sqrt(count) models, rounded up, with as many requests each, as in Punica's evaluation."""
    return random.permutation(np.arange(count, dtype=np.int64) % min(models, math.isqrt(max(count - 1, 0)) + 1))


def skewed(models: int, count: int, _alpha: float, random: Generator) -> Integers:
    """Ask for each model 1.5 times as often as for the next, as in Punica's evaluation.

    With fewer models than the distribution has, the tail starts again at the first model.
    """
    counts = geometric_counts(count)
    return random.permutation(np.repeat(np.arange(len(counts), dtype=np.int64), counts) % models)


def geometric_counts(count: int) -> Sequence[int]:
    """Split `count` requests into 1, 1, 2, 3, 5, 7, 11, ... as far as they go, and the remainder; largest first."""
    counts = list[int]()
    while (following := int(SKEW ** len(counts))) <= count - sum(counts):
        counts.append(following)
    rest = count - sum(counts)
    return sorted([*counts, *([rest] if rest else [])], reverse=True)


def zipf(models: int, count: int, alpha: float, random: Generator) -> Integers:
    """Ask for the k-th model with a probability proportional to 1 / k^alpha."""
    weights = np.arange(1, models + 1, dtype=np.float64) ** -alpha
    return random.choice(models, size=count, p=weights / weights.sum()).astype(np.int64)


def power(models: int, count: int, alpha: float, random: Generator) -> Integers:
    """Ask for the first k of n models with (k/n)^alpha of the requests, as in S-LoRA's evaluation.

    alpha 1 is uniform; less is more skewed.
    """
    return np.minimum((random.power(alpha, count) * models).astype(np.int64), models - 1)


# Each takes the number of models and of requests, alpha and a generator; it returns the model's index of each request.
POPULARITIES: dict[str, Callable[[int, int, float, Generator], Integers]] = {
    "uniform": uniform,
    "identical": identical,
    "distinct": distinct,
    "skewed": skewed,
    "zipf": zipf,
    "power": power,
}
