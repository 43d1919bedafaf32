import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.api.openai import stop_strings
from peftserve.server.api.openai.stop_strings import StopStrings, StopTable

SMALL = st.text("ab", max_size=30)


def _plain(text, stops, include):
    """(text, stop) by the definition: the earliest end, then the earliest start."""
    ends = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
    if not ends:
        return text, None
    end, start, stop = min(ends)
    return text[: end if include else start], stop


@given(SMALL, st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.booleans(), st.data())
def test_any_cutting_gives_the_plain_answer(text, stops, include, data):
    checker = StopStrings(stops, include)
    shown = ""
    rest = text
    while rest and checker.matched is None:
        size = data.draw(st.integers(1, len(rest)))
        shown += checker.push(rest[:size])
        rest = rest[size:]
        held = text[len(shown) : len(text) - len(rest)] if checker.matched is None else ""
        assert all(len(held) < len(s) for s in stops) or any(s.startswith(held) for s in stops)
    shown += checker.flush()
    assert (shown, checker.matched) == _plain(text, stops, include)


def test_nothing_is_held_back_that_cannot_become_a_stop_string():
    checker = StopStrings(["\n\nUser:", "END"])
    assert checker.push("Hello\n") == "Hello"
    assert checker.push("world EN") == "\nworld "
    assert checker.push("T") == "ENT"
    assert checker.flush() == ""


@pytest.mark.parametrize(("include", "text"), [(False, "one "), (True, "one END")])
def test_a_match_cuts_the_text_and_keeps_the_stop_string_on_demand(include, text):
    checker = StopStrings(["END"], include)
    assert checker.push("one E") + checker.push("ND two") == text
    assert checker.matched == "END"
    assert checker.flush() == ""


@given(st.lists(SMALL, max_size=5), st.lists(st.text("ab", min_size=1, max_size=8), max_size=6), st.booleans())
def test_sequences_that_share_a_table_do_not_disturb_each_other(texts, stops, include):
    table = StopTable(stops)
    checkers = [StopStrings(table, include) for _ in texts]
    shown = ["" for _ in texts]
    for place in range(max(map(len, texts), default=0)):
        for i, (text, checker) in enumerate(zip(texts, checkers, strict=True)):
            if place < len(text) and checker.matched is None:
                shown[i] += checker.push(text[place])
    for text, checker, beginning in zip(texts, checkers, shown, strict=True):
        assert (beginning + checker.flush(), checker.matched) == _plain(text, stops, include)


class _Counts:
    """Nodes made and steps walked, by everybody."""

    def __init__(self, monkeypatch):
        self.nodes = self.steps = 0
        make, look = stop_strings._Node.__init__, stop_strings.StopTable.step

        def counted_make(node, *arguments):
            self.nodes += 1
            make(node, *arguments)

        def counted_look(table, node, character):
            self.steps += 1
            return look(table, node, character)

        monkeypatch.setattr(stop_strings._Node, "__init__", counted_make)
        monkeypatch.setattr(stop_strings.StopTable, "step", counted_look)


def test_a_sequence_makes_nothing_of_its_own_and_a_table_only_what_is_walked_over(monkeypatch):
    counts = _Counts(monkeypatch)
    table = StopTable(["a" * (1000 + i) + "b" for i in range(16)])
    checkers = [StopStrings(table) for _ in range(1024)]
    assert counts.nodes == 1
    for checker in checkers:
        checker.push("aaaa")
    assert counts.nodes == 5


@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_time_is_linear_in_the_text_whatever_the_stop_strings_are(monkeypatch, piece):
    counts = _Counts(monkeypatch)
    stops = ["a" * (1008 + i) + "b" for i in range(16)] + ["ab" * 500 + "c"]
    checker = StopStrings(stops)
    text = "a" * 5000 + "ab" * 2500
    for start in range(0, len(text), piece):
        checker.push(text[start : start + piece])
    assert checker.matched == "a" * 1023 + "b"
    assert counts.steps <= 2 * len(text)
    assert counts.nodes <= 2 * len(text)


def test_characters_that_mean_something_elsewhere_are_characters():
    for character in string.punctuation + string.whitespace + "\x00é€😀":
        for stop in (character, character * 2, "[" + character, character + "]"):
            checker = StopStrings([stop, "zz"])
            assert checker.push("q" + stop + "r") == "q"
            assert checker.matched == stop
