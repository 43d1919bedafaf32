"""The figures of an evaluation, against counting by hand and by trying every threshold."""

import random

import pytest

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.routing.evaluation import Judged, evaluate

TARGETS = ("sql", "json", "demo")


def judged(target: str, nearest: str, score: float, threshold: float = 0.3) -> Judged:
    return Judged(target, nearest if score >= threshold else "demo", nearest, score)


def share_right(examples: list[Judged], threshold: float) -> float:
    right = [(one.nearest if (one.score or 0) >= threshold else "demo") == one.target for one in examples]
    return sum(right) / len(right)


def test_accuracy_and_confusion_are_of_the_route_as_it_is() -> None:
    found = evaluate(
        [
            judged("sql", "sql", 0.9),
            judged("sql", "json", 0.4),
            judged("json", "json", 0.2),
            judged("demo", "sql", 0.1),
        ],
        TARGETS,
        "demo",
    )
    assert found.accuracy == 0.5
    assert found.confusion == {"sql": {"sql": 1, "json": 1}, "json": {"demo": 1}, "demo": {"demo": 1}}


def test_the_threshold_lies_in_the_middle_of_the_widest_best_range() -> None:
    found = evaluate([judged("sql", "sql", 0.8), judged("demo", "sql", 0.4)], TARGETS, "demo")
    assert found.threshold == pytest.approx(0.6)
    assert found.best_accuracy == 1
    always = evaluate([judged("sql", "sql", 0.8), judged("json", "json", 0.4)], TARGETS, "demo")
    assert always.threshold == pytest.approx(0.2)
    never = evaluate([judged("demo", "sql", 0.8), judged("demo", "json", 0.4)], TARGETS, "demo")
    assert never.threshold == pytest.approx(0.9)


def test_no_threshold_is_better() -> None:
    draw = random.Random(2)
    for _ in range(50):
        scores = [draw.choice([-0.2, 0.0, 0.25, 0.5, 1.0, draw.random()]) for _ in range(draw.randint(1, 12))]
        examples = [judged(draw.choice(TARGETS), draw.choice(TARGETS[:2]), score) for score in scores]
        found = evaluate(examples, TARGETS, "demo")
        assert found.threshold is not None
        assert share_right(examples, found.threshold) == pytest.approx(found.best_accuracy)
        assert found.best_accuracy == pytest.approx(max(share_right(examples, i / 1000) for i in range(1001)), abs=0.01)
        assert found.accuracy == pytest.approx(share_right(examples, 0.3))


def test_a_route_without_scores_has_no_threshold() -> None:
    found = evaluate([Judged("sql", "sql"), Judged("json", "sql")], TARGETS)
    assert (found.accuracy, found.best_accuracy, found.threshold) == (0.5, 0.5, None)


def test_a_target_that_the_route_never_chooses_is_an_error_that_names_it() -> None:
    with pytest.raises(InvalidAdapter, match=r"examples\[1\].target is 'slq'.*: 'sql', 'json', 'demo'") as error:
        evaluate([Judged("sql", "sql"), Judged("slq", "sql")], TARGETS)
    assert error.value.param == "examples"
