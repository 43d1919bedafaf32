import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.peft.patterns import Deadline, Pattern, pattern_keys

NAME = "model.layers.0.self_attn.q_proj"


def pattern(text: str, seconds: float = 5.0) -> Pattern:
    return Pattern(text, "target_modules", Deadline(seconds))


def test_whole_names() -> None:
    assert pattern(r".*\.(q|v)_proj").fullmatch(NAME)
    assert not pattern(r"(q|v)_proj").fullmatch(NAME)
    assert not pattern(r"model").fullmatch(NAME)


def test_ends_of_names() -> None:
    ((_, anywhere), (_, exact)) = pattern_keys(["q_proj|v_proj", "layers"], "rank_pattern", Deadline())
    assert anywhere.match(NAME)
    assert not exact.match(NAME)
    assert not anywhere.match("model.eq_proj")


@pytest.mark.parametrize("text", ["(", "[a", "*a", "a{2,1}", "(?P<x>a)(?P<x>b)", "(?P=y)", "\\"])
def test_invalid_expressions(text: str) -> None:
    with pytest.raises(InvalidAdapter, match="target_modules is not a valid regular expression") as error:
        pattern(text)
    assert error.value.param == "target_modules"


@pytest.mark.parametrize(
    "text", ["a" * 40_000, "(a)" * 101, "a{70000}", "(?:(?:a?){1000}){1000}b", "((a{1,300}){2,300}){300}"]
)
def test_expressions_that_would_be_large(text: str) -> None:
    with pytest.raises(InvalidAdapter, match=r"target_modules (is over|has too many)"):
        pattern(text)


# Neither ends by itself in the time of a test.
ENDLESS = [r"(?:a|b|[\w.]|\w\w|..)*[!?]\d", r"(.*\.)?((a|[\w.]|\w+)+[!?])$"]


@pytest.mark.parametrize("text", ENDLESS)
def test_expressions_that_would_take_forever(text: str) -> None:
    with pytest.raises(InvalidAdapter, match="target_modules takes too long to match"):
        pattern(text, seconds=0.05).fullmatch(NAME * 20)


def test_the_deadline_is_shared() -> None:
    deadline = Deadline(0.2)
    patterns = [Pattern(text, "x", deadline) for text in ENDLESS * 5]
    for one in patterns:
        with pytest.raises(InvalidAdapter, match="x takes too long"):
            one.fullmatch(NAME * 20)
    with pytest.raises(InvalidAdapter, match="x takes too long"):
        Pattern("a", "x", deadline)


@pytest.mark.parametrize("text", [r"(a+)+$", r"(.*.*)*x", r"((a|aa)*)\1z", r"(?:(?:\w|[\w.])+)+[!?]"])
def test_famous_expressions_end_one_way_or_the_other(text: str) -> None:
    with contextlib.suppress(InvalidAdapter):
        assert not pattern(text, seconds=0.05).fullmatch("a" * 60 + "!.")


def test_too_many_keys() -> None:
    with pytest.raises(InvalidAdapter, match="rank_pattern has 5000 entries"):
        pattern_keys([f"a{i}" for i in range(5000)], "rank_pattern", Deadline())


PIECES = st.sampled_from(
    ["q_proj", "model", r"\.", ".", ".*", ".*?", r"\d+", "(", ")", "|", "(?:", "[a-z_]", "+", "$", "^"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join))
def test_as_python_s_own_expressions(text: str) -> None:
    try:
        own = re.compile(text)
    except re.error:
        with pytest.raises(InvalidAdapter):
            pattern(text)
        return
    assert pattern(text).fullmatch(NAME) == bool(own.fullmatch(NAME))
