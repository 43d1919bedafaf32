import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.api.stop_strings import StopStrings

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
