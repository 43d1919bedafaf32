"""Splits: which arm a request gets.

By weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005): arm i of
weight w has the score -w / ln(u), with u a hash in (0, 1) of the salt, the arm's target and who asks, and the highest
score wins. The shares are as the weights; when one weight changes, only those move who must.
"""

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b

from .bodies import Arm, Ramp, Split
from .query import Query


def arm_chooser(body: Split, name: str, created: float) -> Callable[[Query], int]:
    """Return the function that chooses an arm for a request, by its number.

    name: of the route, the salt of one without. created: when it was put, in seconds since 1970; for its ramp.
    """
    fixed, ramp = [arm.weight for arm in body.arms], body.ramp
    keys, salt = _keys(body.arms), body.salt or name
    who_asks = _asker(body.sticky)

    def choose(query: Query) -> int:
        weights = fixed if ramp is None else ramped(fixed, ramp, query.now - created)
        who = who_asks(query)
        return rendezvous(weights, keys, f"{salt}\0{who}") if who else _drawn(weights, query.draw())

    return choose


def ramped(weights: Sequence[float], ramp: Ramp, seconds: float) -> list[float]:
    """Return the weights, with a sum of 1, so many `seconds` after the ramp began."""
    share = ramp.start + (ramp.end - ramp.start) * min(max(seconds / ramp.seconds, 0.0), 1.0)
    others = sum(weights) - weights[ramp.arm]
    if others <= 0:  # nobody else to share the rest
        return [float(number == ramp.arm) for number in range(len(weights))]
    return [share if number == ramp.arm else (1 - share) * w / others for number, w in enumerate(weights)]


def rendezvous(weights: Sequence[float], keys: Sequence[str], who: str) -> int:
    """Return the number of the arm for `who`. keys: what stays the same of each arm when weights change."""
    scores = [
        -weight / math.log(_unit(key, who)) if weight > 0 else -1.0 for weight, key in zip(weights, keys, strict=True)
    ]
    return scores.index(max(scores))


def _asker(sticky: str | None) -> Callable[[Query], str | None]:
    """Return the function that says by what a request stays with its arm; by nothing where that is empty."""
    if sticky is None:
        return lambda query: None
    if sticky == "user":
        return lambda query: query.user
    header = sticky.removeprefix("header:").lower()
    return lambda query: query.header(header)


def _drawn(weights: Sequence[float], draw: float) -> int:
    left = draw * math.fsum(weights)
    last = 0
    for number, weight in enumerate(weights):
        if weight > 0:
            if left < weight:
                return number
            last = number
        left -= weight
    return last  # the sum's rounding


def _keys(arms: Sequence[Arm]) -> list[str]:
    """Return each arm's target, told apart where one comes twice."""
    seen: dict[str, int] = {}
    keys = []
    for arm in arms:
        seen[arm.target] = seen.get(arm.target, 0) + 1
        keys.append(f"{arm.target}\0{seen[arm.target]}")
    return keys


def _unit(key: str, who: str) -> float:
    """Return a hash as a number in (0, 1)."""
    digest = blake2b(f"{key}\0{who}".encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> 12) + 0.5) / (1 << 52)  # a bit more, and the highest would round to 1
