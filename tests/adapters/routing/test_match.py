"""The policy of routes by content: who answers, with which weights, and what it says of the choice."""

import math
from typing import Any

import msgspec
import pytest

from peftserve.adapters.errors import AdapterNotFound
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.names import VersionRef
from peftserve.adapters.registry_reader import AdapterRecord
from peftserve.adapters.routing.bodies import Match
from peftserve.adapters.routing.found import Choice, Found
from peftserve.adapters.routing.match import TEMPERATURE, match_policy, pick, softmax
from peftserve.adapters.routing.query import Query, VectorKey, VectorsNeeded

SQL = {"target": "sql", "examples": ["Show the name of all users.", "How many cars are red?"], "keywords": ["select"]}
JSON = {"target": "json@2", "examples": ["Anna bought 3 hats in Rome."], "description": "a purchase"}
DATES = {"target": "dates", "description": "a date, such as 3 May 2021"}


def body(*candidates: dict[str, Any], **fields: Any) -> Match:
    return msgspec.convert({"candidates": candidates or (SQL, JSON, DATES), **fields}, Match)


def found(target: str) -> Found:
    name, _, version = target.partition("@")
    if name == "gone":
        raise AdapterNotFound("there is no adapter 'gone'")
    return Found(((record(name, int(version or 1)), 1.0),))


def record(name: str, version: int) -> AdapterRecord:
    return AdapterRecord(VersionRef(name, version, "0" * 64), 0.0, AdapterFacts("LORA", 8, 100, {}, 2, 4))


def choose(body: Match, prompt: str) -> Choice:
    return match_policy(body, None)(Query(text=lambda: prompt), found, None)


def parts(choice: Choice) -> dict[str, float]:
    return {f"{record.name}@{record.version}": weight for record, weight in choice.found.parts}


@pytest.mark.parametrize(
    ("prompt", "target", "arm"),
    [
        ("Show the age of all users", "sql", 0),
        ("please select rows", "sql", 0),
        ("Ben bought 8 hats in Rome", "json@2", 1),
        ("4 May 2020", "dates", 2),
    ],
)
def test_the_nearest_candidate_answers(prompt: str, target: str, arm: int) -> None:
    choice = choose(body(), prompt)
    assert (choice.chosen, choice.arm, parts(choice)) == (target, arm, {target if "@" in target else f"{target}@1": 1})
    assert [name for name, _ in choice.scores] == ["sql", "json@2", "dates"]
    assert choice.score == max(score for _, score in choice.scores)


def test_under_the_threshold_the_fallback_answers() -> None:
    choice = choose(body(threshold=0.99, fallback="chat"), "Show the age of all users")
    assert (choice.chosen, choice.arm, parts(choice)) == ("chat", None, {"chat@1": 1})
    assert 0.3 < (choice.score or 0) < 0.99
    bare = choose(body(), "zzzz")
    assert (bare.arm, bare.score, bare.found) == (None, 0, Found())


def test_the_threshold_itself_is_reached() -> None:
    assert choose(body(threshold=1, fallback="chat"), "SELECT").chosen == "sql"


def test_several_answer_as_a_mixture_by_softmax_of_their_scores() -> None:
    choice = choose(body(threshold=0, top_k=2), "Show all users in Rome")
    scores = dict(choice.scores)
    odds = math.exp((scores["sql"] - scores["json@2"]) / TEMPERATURE)
    assert (choice.chosen, choice.arm) == ("", 0)
    assert parts(choice) == pytest.approx({"sql@1": odds / (1 + odds), "json@2": 1 / (1 + odds)})
    assert parts(choose(body(threshold=0.3, top_k=3), "Show the age of all users")) == {"sql@1": 1}


def test_a_target_that_is_a_candidate_twice_answers_once() -> None:
    twice = body(
        {"target": "a", "keywords": ["red car"]}, {"target": "a", "keywords": ["blue car"]}, DATES, threshold=0
    )
    choice = choose(msgspec.structs.replace(twice, top_k=2), "the red car")
    assert choice.arm == 0
    assert [*parts(choice)] == ["a@1", "dates@1"]


def test_pick_orders_by_score_and_then_by_place() -> None:
    assert [one.number for one in pick(["a", "b", "c", "a"], [0.5, 0.9, 0.5, 0.7], 0.5, 8)] == [1, 3, 2]
    assert pick(["a"], [0.1], 0.2, 1) == []
    assert softmax([0.4]) == [1]
    assert sum(softmax([1.0, 0.9, -1.0])) == pytest.approx(1)


def test_a_candidate_that_is_gone_is_an_error_and_others_are_not_asked() -> None:
    gone = body({"target": "gone", "keywords": ["red"]}, DATES)
    assert choose(gone, "4 May 2020").chosen == "dates"
    with pytest.raises(AdapterNotFound):
        choose(gone, "red")


def test_the_base_is_asked_for_states_of_its_layer() -> None:
    policy = match_policy(body(encoder="base", layer=1, fallback="chat"), None)
    with pytest.raises(VectorsNeeded) as needed:
        policy(Query(lambda: "x"), found, None)
    keys = needed.value.keys
    assert {key.layer for key in keys} == {1}
    assert keys[0].text is None
    texts = [key.text for key in keys[1:]]
    axes = dict(zip(texts, ([1.0, 0, 0], [1, 0.1, 0], [0.9, 0, 0.1], [0, 1, 0], [0, 0, 1]), strict=True))
    vectors = {VectorKey(1, text): axes[text] for text in texts}
    assert (
        policy(Query(lambda: "x", vectors={**vectors, VectorKey(1, None): [0, 2.0, 0]}), found, None).chosen == "json@2"
    )
    assert policy(Query(lambda: "x", vectors={VectorKey(1, None): [0, 0, 5.0]}), found, None).chosen == "dates"
