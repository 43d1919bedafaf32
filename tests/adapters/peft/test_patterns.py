import contextlib
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.peft.patterns import Deadline, Pattern, pattern_keys
from peftserve.adapters.peft.targets import values_at

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
    "text", ["a" * 40_000, "(a)" * 101, "a{70000}", "(?:(?:a?){1000}){1000}b", "((a{1,300}){2,300}){300}", "a?" * 1001]
)
def test_expressions_that_would_be_large(text: str) -> None:
    with pytest.raises(InvalidAdapter, match=r"target_modules (is over|has over|has too many)"):
        pattern(text)


# Neither ends by itself in the time of a test.
ENDLESS = [r"(?:a|b|[\w.]|\w\w|..)*[!?]\d", r"(.*\.)?((a|[\w.]|\w+)+[!?])$"]


@pytest.mark.parametrize("text", ENDLESS)
def test_expressions_that_would_take_forever(text: str) -> None:
    with pytest.raises(InvalidAdapter, match="target_modules takes too long to match"):
        pattern(text, seconds=0.05).fullmatch(NAME * 20)


def test_the_deadline_is_shared() -> None:
    deadline = Deadline(0.05)
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


def test_the_text_of_one_adapters_expressions_is_limited_and_each_counts_once() -> None:
    deadline = Deadline(30.0)
    for _ in range(50):
        Pattern("a?" * 900, "target_modules", deadline)
    with pytest.raises(InvalidAdapter, match="rank_pattern takes the adapter's expressions over 100000 characters"):
        pattern_keys([f"(b|{'c?' * 900}){i}" for i in range(100)], "rank_pattern", deadline)
    keys = ["x" * 6000 + f"(a|b){i}" for i in range(10)]
    for field in ("rank_pattern", "alpha_pattern"):
        pattern_keys(keys, field, deadline)
    assert len(deadline._compiled) == 11, "none is compiled where all are too much"


def test_what_runs_beside_takes_nothing_of_the_time() -> None:
    """An adapter's tensors may take as long as they do to be read, and a machine may be busy."""
    deadline = Deadline(0.02)
    time.sleep(0.05)
    assert Pattern(r"a+", "x", deadline).fullmatch("aaa")
    busy(0.04)
    assert Pattern(r"b+", "x", deadline).fullmatch("bbb")


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_one_pause_is_forgiven_and_two_are_not() -> None:
    """A collection of garbage runs on whatever thread allocates."""
    deadline = Deadline(0.05)
    with deadline.running("x"):
        busy(0.2)
    assert Pattern(r"a+", "x", deadline).fullmatch("aaa")
    with deadline.running("x"):
        busy(0.2)
    with pytest.raises(InvalidAdapter, match="x takes too long"):
        Pattern(r"a+", "x", deadline)


def test_a_match_that_another_clock_stops_is_tried_again() -> None:
    stops = [TimeoutError, TimeoutError]

    def match(left: float) -> float:
        if stops:
            raise stops.pop()
        return left

    deadline = Deadline(5.0)
    with deadline.running("x"):
        assert 0 < deadline.within(match) <= 5.0
    with pytest.raises(InvalidAdapter, match="x takes too long"), deadline.running("x"):
        Deadline(0.0).within(match)


NAMES = st.lists(st.sampled_from(["a", "b_", "layers", "0", "12"]), min_size=1, max_size=4).map(".".join)


@settings(max_examples=300, deadline=None)
@given(key=NAMES, name=NAMES, glue=st.sampled_from([".", "x", "", "_"]), wild=st.booleans())
def test_a_key_that_is_a_name_matches_as_an_expression_does(key: str, name: str, glue: str, wild: bool) -> None:
    whole = f"{name}{glue}{key.replace('.', '_') if wild else key}"
    ((_, plain),) = pattern_keys([key], "rank_pattern", Deadline())
    assert not isinstance(plain, Pattern)
    assert bool(plain.match(whole)) == bool(re.match(rf"(.*\.)?({key})$", whole))


def test_a_pattern_for_each_module_of_a_large_model_is_in_time() -> None:
    names = [f"model.layers.{i}.{m}" for i in range(94) for m in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up")]
    values = {name: i for i, name in enumerate(names)}
    assert values_at(values, -1, names, "rank_pattern", Deadline()) == values


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
    name = "model.q_proj"  # short: Python's own expressions take a time that doubles with each character
    assert pattern(text).fullmatch(name) == bool(own.fullmatch(name))
