"""Likeness by the base's hidden states: what is asked for, what is kept, and that the cosines are right."""

import numpy as np
import pytest

from peftserve.adapters.routing.hidden_states import AT_ONCE, NearestStates, nearest_states
from peftserve.adapters.routing.query import Query, VectorKey, VectorsNeeded

CANDIDATES = [["select", "count"], ["object"], [f"text {i}" for i in range(AT_ONCE + 10)]]
LAYER = 2


class Base:
    """A base whose states are random, but for a part that all of them have. asked: the keys of each time."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.vectors: dict[VectorKey, list[float]] = {}
        self.asked: list[list[VectorKey]] = []

    def states(self, text: str) -> np.ndarray:
        return np.random.default_rng([*text.encode()]).normal(size=32) + 5

    def scores(self, encoder: NearestStates) -> list[float]:
        while True:
            try:
                return encoder.scores(Query(lambda: self.prompt, vectors=self.vectors))
            except VectorsNeeded as needed:
                self.asked.append(list(needed.keys))
                for key in needed.keys:
                    text = self.prompt if key.text is None else key.text
                    self.vectors[key] = self.states(text).tolist()


def test_examples_are_asked_for_once_and_a_few_at_a_time() -> None:
    encoder = NearestStates(CANDIDATES, LAYER)
    first, second = Base("count"), Base("object")
    first.scores(encoder)
    texts = [text for of_one in CANDIDATES for text in of_one]
    assert [key.text for keys in first.asked for key in keys if key.text is not None] == texts
    assert max(map(len, first.asked)) <= AT_ONCE + 1
    assert {key.layer for keys in first.asked for key in keys} == {LAYER}
    second.scores(encoder)
    assert second.asked == [[VectorKey(LAYER, None)]]


def test_what_an_aborted_request_has_brought_is_kept() -> None:
    encoder, base = NearestStates(CANDIDATES, LAYER), Base("count")
    with pytest.raises(VectorsNeeded) as needed:
        encoder.scores(Query(lambda: "count"))
    brought = {key: base.states(key.text or "").tolist() for key in needed.value.keys}
    with pytest.raises(VectorsNeeded) as further:
        encoder.scores(Query(lambda: "count", vectors=brought))
    assert not set(further.value.keys) & set(brought)


def test_scores_are_cosines_from_the_middle_of_the_candidates() -> None:
    base = Base("count")
    scores = base.scores(NearestStates(CANDIDATES, LAYER))
    states = [[base.states(text) for text in of_one] for of_one in CANDIDATES]
    middle = np.mean([np.mean(of_one, 0) for of_one in states], 0)
    prompt = base.states("count") - middle

    def cosine(a: np.ndarray) -> float:
        return float(a @ prompt / np.linalg.norm(a) / np.linalg.norm(prompt))

    assert scores == pytest.approx([max(cosine(state - middle) for state in of_one) for of_one in states], abs=1e-5)
    assert scores[0] == pytest.approx(1)


def test_a_single_candidate_is_compared_as_it_is() -> None:
    assert Base("count").scores(NearestStates([["count"]], None)) == pytest.approx([1])
    assert Base("other").scores(NearestStates([["count"]], None))[0] > 0.9  # they have much in common


def test_states_of_no_length_score_nothing() -> None:
    encoder = NearestStates([["a"], ["b"]], None)
    vectors = {VectorKey(None, text): [0.0, 0.0] for text in ("a", "b", None)}
    assert encoder.scores(Query(lambda: "x", vectors=vectors)) == [0.0, 0.0]


def test_an_empty_prompt_is_like_no_example_and_needs_no_base() -> None:
    assert NearestStates([["a"], ["b"]], None).scores(Query(lambda: " \n")) == [0.0, 0.0]


def test_examples_are_run_as_the_prompt_is() -> None:
    scores = nearest_states([["a"], ["b"]], None)
    text = {VectorKey(None, text): [1.0, float(text == "a")] for text in ("a", "b", None)}
    chat = {VectorKey(None, text, True): [1.0, float(text == "b")] for text in ("a", "b", None)}
    for vectors, is_chat in ((text, False), (chat, True)):
        with pytest.raises(VectorsNeeded) as needed:
            scores(Query(lambda: "x", is_chat=is_chat))
        assert {*needed.value.keys} == {*vectors}
        assert scores(Query(lambda: "x", is_chat=is_chat, vectors=vectors))[0] == pytest.approx(
            -1 if is_chat is False else 1
        )
