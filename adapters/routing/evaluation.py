"""How well a route chooses, by prompts whose right targets are known. Knows answers and scores, and no policy."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from ..errors import InvalidAdapter


@dataclass(frozen=True)
class Judged:
    """What a route made of one labelled prompt.

    target: the right one. chosen: the route's. nearest, score: the candidate with the highest score and that score,
    whether or not it reached the threshold; None of a route without scores.
    """

    target: str
    chosen: str
    nearest: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """accuracy: share of right choices of the route as it is, 0 to 1.

    threshold: the one that would make most choices right, in the middle of all that do; None without scores.
    best_accuracy: the share that would then be right.
    confusion: right target to chosen target to number of prompts.
    """

    accuracy: float
    threshold: float | None
    best_accuracy: float
    confusion: Mapping[str, Mapping[str, int]]


def evaluate(judged: Sequence[Judged], targets: Sequence[str], fallback: str | None = None) -> Evaluation:
    """Sum up one or more answers of a route.

    targets: all that the route may choose, the fallback among them. fallback: what answers under the threshold.
    Raises InvalidAdapter for a right target that the route never chooses.
    """
    confusion: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for number, one in enumerate(judged):
        _check_target(number, one.target, targets)
        confusion[one.target][one.chosen] += 1
    accuracy = sum(one.target == one.chosen for one in judged) / len(judged)
    threshold, best = _best_threshold(judged, fallback)
    return Evaluation(accuracy, threshold, accuracy if threshold is None else best, confusion)


def _check_target(number: int, target: str, targets: Sequence[str]) -> None:
    if target not in targets:
        known = ", ".join(repr(target) for target in dict.fromkeys(targets))
        raise InvalidAdapter(
            f"examples[{number}].target is {target[:140]!r}, which the route never chooses; its targets: {known}",
            param="examples",
        )


def _best_threshold(judged: Sequence[Judged], fallback: str | None) -> tuple[float | None, float]:
    """Return the threshold from 0 to 1 that makes most choices right, and the share that it does.

    Between two neighbouring scores all thresholds are alike. Of several such ranges the widest is taken: prompts that
    are not among the examples score near them. Only 0 itself is reached by a score of 0.
    """
    # Right with the nearest candidate, right with the fallback; by score.
    scored = sorted(
        (one.score, one.nearest == one.target, fallback == one.target) for one in judged if one.score is not None
    )
    if not scored:
        return None, 0.0
    under = accumulate((falls for _, _, falls in scored), initial=0)
    over = accumulate((near for _, near, _ in reversed(scored)), initial=0)
    right = [falls + near for falls, near in zip(under, reversed([*over]), strict=True)]  # with so many below
    edges = [0.0, *(max(score, 0.0) for score, _, _ in scored), 1.0]
    ranges = [
        (right[below], high - low, (low + high) / 2) for below, (low, high) in enumerate(pairwise(edges)) if high > low
    ]
    best, _, threshold = max([*ranges, (right[sum(score < 0 for score, _, _ in scored)], 0.0, 0.0)])
    return threshold, best / len(judged)
