"""TF-IDF against scikit-learn's, and what users and attackers may put into it."""

import random

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.pipeline import make_pipeline, make_union

from peftserve.adapters.routing.terms import MAX_CHARACTERS
from peftserve.adapters.routing.tfidf import TfidfIndex

TEXT = "show the price of all books whose year is under nine hundred as json one by one a table in sql x y"
WORDS = TEXT.split()


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))


def test_scores_are_those_of_scikit_learn() -> None:
    draw = random.Random(3)
    candidates = [[sentence(draw) for _ in range(draw.randint(1, 6))] for _ in range(9)]
    texts = [text for of_one in candidates for text in of_one]
    counts = make_union(
        CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+"),
        CountVectorizer(analyzer="char_wb", ngram_range=(3, 5)),
    )
    oracle = make_pipeline(counts, TfidfTransformer(sublinear_tf=True)).fit(texts)
    index, vectors = TfidfIndex(candidates), oracle.transform(texts)
    for _ in range(50):
        prompt = f"{sentence(draw)} unheard {sentence(draw)} {draw.choice(WORDS)}"
        cosines = iter((vectors @ oracle.transform([prompt]).T).toarray()[:, 0])
        want = [max(next(cosines) for _ in of_one) for of_one in candidates]
        np.testing.assert_allclose(index.scores(prompt), want, atol=1e-6)


def test_an_example_is_its_own_nearest() -> None:
    index = TfidfIndex([["Show all books", "sql"], ["as JSON, please"]])
    assert index.scores("show ALL books!")[0] == pytest.approx(1)
    assert index.scores("as json please") == pytest.approx([0, 1], abs=0.3)


def test_a_keyword_is_found_in_a_long_prompt_and_near_words_are_near() -> None:
    index = TfidfIndex([["invoice", "refund"], ["flight", "hotel"]])
    filler = "I wrote to you last week and have not heard anything since, which surprises me. " * 5
    found = index.scores(f"{filler} It is about the refund. {filler}")
    assert found[0] > 0.5 > found[1]
    invoices = index.scores("two invoices")
    assert invoices[0] > 0.5 > invoices[1]


@pytest.mark.parametrize("prompt", ["", "   ", "?!", "zzzz qqqq", "\ud800\udfff", "\0", "東京"])
def test_a_prompt_with_nothing_known_scores_nothing(prompt: str) -> None:
    assert TfidfIndex([["show all books"], ["as json"]]).scores(prompt) == [0.0, 0.0]


def test_texts_and_candidates_may_be_empty() -> None:
    assert TfidfIndex([]).scores("a") == []
    assert TfidfIndex([[]]).scores("a") == [0.0]
    assert TfidfIndex([[""], [], ["?", "", "sql"], ["\ud800"]]).scores("sql") == pytest.approx([0, 0, 1, 0])


def test_scores_are_numbers_from_0_to_1_whatever_the_texts() -> None:
    draw = random.Random(5)
    letters = [chr(code) for code in (*range(32, 127), 0xE9, 0x301, 0x65E5, 0xD800, 0x1F389, 0xFDFA, 0x200D)]
    texts = ["".join(draw.choices(letters, k=draw.randint(0, 200))) for _ in range(60)]
    index = TfidfIndex([texts[i : i + 3] for i in range(0, 30, 3)])
    for prompt in [*texts, "".join(draw.choices(letters, k=20 * MAX_CHARACTERS))]:
        scores = index.scores(prompt)
        assert len(scores) == 10
        assert all(0 <= score <= 1 for score in scores)
    assert all(index.scores(text)[i // 3] > 0.999 for i, text in enumerate(texts[:30]) if text.strip(" .,"))


def test_memory_is_bounded_by_the_texts() -> None:
    """The largest index that a route may have: a million characters, no term of which comes twice."""
    draw = random.Random(7)
    texts = ["".join(chr(draw.randint(0x400, 0x52F)) for _ in range(4096)) for _ in range(8)]
    index = TfidfIndex([texts])
    held = sum(part.nbytes for part in vars(index).values())
    assert held < 150 * sum(map(len, texts))
