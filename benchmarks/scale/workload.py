"""Requests of a fleet: when they come, for which adapter, how long. One seed is one trace."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

# Tokens of chats and of code, about as the public traces of Azure's language models have them: medians of lognormals.
CHAT = {"prompt": 1020.0, "output": 129.0}
CODE = {"prompt": 1500.0, "output": 13.0}
CODE_SHARE = 0.3
SPREADS = {"prompt": 0.9, "output": 1.0}
LONGEST = 8192.0
RANKS, SHARES = (8, 16, 32, 64), (0.4, 0.4, 0.15, 0.05)


@dataclass(frozen=True)
class Trace:
    """Requests in the order in which they come. arrival: seconds. rank: of each adapter, not of each request."""

    arrival: Floats
    adapter: Ints
    prompt: Floats
    output: Floats
    rank: Ints

    def __len__(self) -> int:
        return len(self.arrival)


@dataclass(frozen=True)
class Traffic:
    """rate: requests a second. skew: the k-th adapter is asked for with a probability proportional to k ** -skew."""

    requests: int
    adapters: int
    rate: float
    skew: float
    seed: int = 0


def steady(traffic: Traffic) -> Trace:
    """Return requests that come by chance, each for an adapter by chance."""
    draw = np.random.default_rng(traffic.seed)
    arrival = np.cumsum(draw.exponential(1 / traffic.rate, traffic.requests))
    return _trace(traffic, draw, arrival, _adapters(traffic, draw, traffic.requests))


def azure(traffic: Traffic) -> Trace:
    """Return requests as people send them: an adapter's come in sessions, and the rate goes up and down by a half."""
    draw = np.random.default_rng(traffic.seed)
    mean, gap = 6.0, 4.0  # requests of a session, and seconds between them
    sessions = int(traffic.requests / mean * 1.5)
    lengths = draw.geometric(1 / mean, sessions)
    span = traffic.requests / traffic.rate
    begin = np.sort(_waved(draw.random(sessions) * span * 1.5, span / 3))
    first = np.repeat(begin, lengths)
    gaps = draw.exponential(gap, len(first))
    gaps[np.cumsum(lengths) - lengths] = 0.0
    within = np.cumsum(gaps)
    arrival = first + within - np.repeat(within[np.cumsum(lengths) - lengths], lengths)
    order = np.argsort(arrival)[: traffic.requests]
    adapter = np.repeat(_adapters(traffic, draw, sessions), lengths)[order]
    return _trace(traffic, draw, arrival[order], adapter)


def _waved(times: Floats, period: float) -> Floats:
    """Return evenly spread times so that their density swings by a half around its mean."""
    return times + 0.5 * period / (2 * np.pi) * np.sin(2 * np.pi * times / period)


def _adapters(traffic: Traffic, draw: np.random.Generator, number: int) -> Ints:
    weights = np.arange(1, traffic.adapters + 1, dtype=np.float64) ** -traffic.skew
    edges = np.cumsum(weights / weights.sum())
    return np.minimum(np.searchsorted(edges, draw.random(number)), traffic.adapters - 1)


def _trace(traffic: Traffic, draw: np.random.Generator, arrival: Floats, adapter: Ints) -> Trace:
    rank = np.random.default_rng(0).choice(RANKS, traffic.adapters, p=SHARES)  # the same adapters for every seed
    is_code = draw.random(len(arrival)) < CODE_SHARE
    prompt, output = (_lengths(draw, is_code, field) for field in ("prompt", "output"))
    return Trace(arrival, adapter, prompt, output, rank)


def _lengths(draw: np.random.Generator, is_code: Any, field: str) -> Floats:
    medians = np.where(is_code, CODE[field], CHAT[field])
    return np.clip(np.rint(draw.lognormal(np.log(medians), SPREADS[field])), 1, LONGEST)


TRACES: dict[str, Callable[[Traffic], Trace]] = {"steady": steady, "azure": azure}
