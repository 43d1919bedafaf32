"""The terms of a text, against a plain reading of their definition."""

import unicodedata
from collections import Counter
from itertools import pairwise

import pytest

from peftserve.adapters.routing.terms import MAX_CHARACTERS, terms_of, words_of


def plain_terms(words: list[str]) -> Counter[tuple[str, str]]:
    found = Counter(("whole", word) for word in words)
    found.update(("whole", f"{a} {b}") for a, b in pairwise(words))
    for word in words:
        padded = f" {word} "
        found.update(
            ("piece", padded[i:j]) for i in range(len(padded)) for j in range(i + 3, min(i + 5, len(padded)) + 1)
        )
    return found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" ,.;:!?()\n\t", []),
        ("Hello, World!", ["hello", "world"]),
        ("snake_case x2 C++", ["snake_case", "x2", "c", "+", "+"]),
        ("price: 5$ or 5€", ["price", "5", "$", "or", "5", "€"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("ﬁle №5", ["file", "no5"]),
        ("東京タワー abc漢字", ["東", "京", "タ", "ワ", "ー", "abc", "漢", "字"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("дом, ДОМ", ["дом", "дом"]),
        ("🎉🎉 ok", ["🎉", "🎉", "ok"]),
        ("a\ud800b", ["a", "b"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_composed_and_decomposed_are_one_word() -> None:
    assert words_of(unicodedata.normalize("NFD", "Élan")) == words_of("élan") == ["élan"]


@pytest.mark.parametrize("text", ["", "a", "ab a ab", "the cat, the cat sat: onomatopoeia!", "naïve 東京 🎉 straße"])
def test_terms_are_counted_as_they_are_defined(text: str) -> None:
    terms, plain = terms_of(text), plain_terms(words_of(text))
    assert len({*terms.hashes.tolist()}) == len(plain)
    assert sorted(terms.counts.tolist()) == sorted(plain.values())


def test_a_word_is_no_piece_and_order_matters_to_pairs() -> None:
    assert len({*terms_of("cat").hashes.tolist()}) == len([" ca", "cat", "at ", " cat", "cat ", " cat ", "whole cat"])
    one, two = terms_of("red car").hashes, terms_of("car red").hashes
    assert len({*one.tolist()} ^ {*two.tolist()}) == 2


def test_of_a_long_text_both_ends_are_read() -> None:
    words = words_of("first " + "middle " * MAX_CHARACTERS + "last")
    assert (words[0], words[-1]) == ("first", "last")
    assert sum(map(len, words)) <= MAX_CHARACTERS
    grown = words_of("\ufdfa" * MAX_CHARACTERS)  # each becomes 18 characters
    assert sum(map(len, grown)) <= MAX_CHARACTERS
