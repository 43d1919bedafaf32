"""Routes by content: the candidates whose examples are nearest to the prompt answer.

An encoder is a function from a body to a function that scores a request for each candidate: a row of ENCODERS. A score
is the cosine to the candidate's nearest text.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .bodies import Match
from .found import Choice, Follow, Found, weighted_sum
from .hidden_states import nearest_states
from .query import Query
from .tfidf import TfidfIndex

TEMPERATURE = 0.1  # of the softmax over scores: 0.1 more of cosine is e times the weight

Scores = Callable[[Query], Sequence[float]]
"""Return the score of each candidate, from -1 to 1. Raises NotReady."""


class Picked(NamedTuple):
    """A candidate that answers. number: its place among all. weight: its share of a mixture; all together are 1."""

    number: int
    weight: float


def match_policy(body: Match, _: object) -> Callable[[Query, Follow, object], Choice]:
    """Return the policy of a body."""
    targets = [candidate.target for candidate in body.candidates]
    scores_of = ENCODERS[body.encoder]([candidate.texts for candidate in body.candidates], body.layer)

    def choose(query: Query, follow: Follow, _: object) -> Choice:
        scores = scores_of(query)
        best, listed = max(scores), list(zip(targets, scores, strict=True))
        picked = pick(targets, scores, body.threshold, body.top_k)
        if not picked:
            found = Found() if body.fallback is None else follow(body.fallback)
            return Choice(found, body.fallback or "", score=best, scores=listed)
        found = weighted_sum([(follow(targets[one.number]), one.weight) for one in picked])
        chosen = targets[picked[0].number] if len(picked) == 1 else ""
        return Choice(found, chosen, picked[0].number, best, listed)

    return choose


def pick(targets: Sequence[str], scores: Sequence[float], threshold: float, top_k: int) -> list[Picked]:
    """Return the best candidates, of different targets, that reach the threshold, best first; at most `top_k`."""
    reaching = [number for number, score in enumerate(scores) if score >= threshold]
    best: dict[str, int] = {}
    for number in sorted(reaching, key=scores.__getitem__, reverse=True):
        best.setdefault(targets[number], number)
    chosen = list(best.values())[:top_k]
    return [Picked(*pair) for pair in zip(chosen, softmax([scores[number] for number in chosen]), strict=True)]


def softmax(scores: Sequence[float]) -> list[float]:
    """Return weights with a sum of 1, for scores of which the first is the highest."""
    parts = [math.exp((score - scores[0]) / TEMPERATURE) for score in scores]
    return [part / math.fsum(parts) for part in parts]


def _tfidf(texts: Sequence[Sequence[str]], _: int | None) -> Scores:
    index = TfidfIndex(texts)
    return lambda query: index.scores(query.text())


ENCODERS: Mapping[str, Callable[[Sequence[Sequence[str]], int | None], Scores]] = {
    "tfidf": _tfidf,
    "base": nearest_states,
}
