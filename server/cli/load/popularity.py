"""How popular each adapter is: which of `models` each of `count` requests asks for. The literature's, by name.

Every function takes the number of models, of requests, alpha, and a generator of random numbers; it returns indices.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Indices = NDArray[np.int64]
SKEW = 1.5  # Punica's: a model is so much more popular than the next


def identical(_models: int, count: int, _alpha: float, _random: Generator) -> Indices:
    return np.zeros(count, dtype=np.int64)


def distinct(models: int, count: int, _alpha: float, _random: Generator) -> Indices:
    """Each in turn, and from the first again where requests are more than models."""
    return np.arange(count, dtype=np.int64) % models


def uniform(models: int, count: int, _alpha: float, random: Generator) -> Indices:
    """Punica's: sqrt(count) models, rounded up, with as many requests each."""
    return random.permutation(np.arange(count, dtype=np.int64) % min(models, math.isqrt(max(count - 1, 0)) + 1))


def skewed(models: int, count: int, _alpha: float, random: Generator) -> Indices:
    """Punica's: each model has 1.5 times the requests of the next. The tail beyond the models goes round again."""
    counts = geometric_counts(count)
    return random.permutation(np.repeat(np.arange(len(counts), dtype=np.int64), counts) % models)


def geometric_counts(count: int) -> Sequence[int]:
    """1, 1, 2, 3, 5, 7, 11 and so on as long as they fit, and what is left over; the largest first."""
    counts = list[int]()
    while (following := int(SKEW ** len(counts))) <= count - sum(counts):
        counts.append(following)
    rest = count - sum(counts)
    return sorted([*counts, *([rest] if rest else [])], reverse=True)


def zipf(models: int, count: int, alpha: float, random: Generator) -> Indices:
    """The k-th model with a probability proportional to 1 / k^alpha."""
    weights = np.arange(1, models + 1, dtype=np.float64) ** -alpha
    return random.choice(models, size=count, p=weights / weights.sum()).astype(np.int64)


def power(models: int, count: int, alpha: float, random: Generator) -> Indices:
    """S-LoRA's: the first k of n models have (k/n)^alpha of the requests. 1 is uniform, less is more skewed."""
    return np.minimum((random.power(alpha, count) * models).astype(np.int64), models - 1)


POPULARITIES: dict[str, Callable[[int, int, float, Generator], Indices]] = {
    "uniform": uniform,
    "identical": identical,
    "distinct": distinct,
    "skewed": skewed,
    "zipf": zipf,
    "power": power,
}
