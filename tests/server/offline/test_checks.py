from collections import deque
from typing import Any

import numpy as np
import pytest

from peftserve.server.offline import checks

SAID = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("x", ["x"]),
        (["x", [5, 6]], ["x", [5, 6]]),
        ([5, 6], [[5, 6]]),
        (np.array([5, 6]), [[5, 6]]),
        (deque(["x"]), ["x"]),
        ((one for one in ("x", (5,))), ["x", [5]]),
        ([[]], [[]]),
        ([], []),
    ],
)
def test_prompts(prompts: Any, expected: Any) -> None:
    listed = checks.list_prompts(prompts)
    assert listed == expected
    assert {type(one) for prompt in listed if not isinstance(prompt, str) for one in prompt} <= {int}


@pytest.mark.parametrize("prompts", [[[5.5]], [5.5], [["a", "b"]], [True], [[5, None]], None, {"x": 1}, b"x", [b"x"]])
def test_what_is_no_prompt(prompts: Any) -> None:
    with pytest.raises(ValueError, match="a prompt is a text or a list of token ids, and not "):
        checks.list_prompts(prompts)


def test_chats() -> None:
    assert checks.list_chats([SAID, SAID]) == [[SAID, SAID]]
    assert checks.list_chats([[SAID], (SAID, SAID)]) == [[SAID], [SAID, SAID]]


@pytest.mark.parametrize(
    "messages",
    [[], [[]], [[SAID], []], "x", 5, None, ["x"], [{"role": "user"}], [{**SAID, "content": None}], [[SAID, 5]]],
)
def test_what_is_no_chat(messages: Any) -> None:
    with pytest.raises(ValueError, match=r"a message has a role and a content|a chat has one message or more"):
        checks.list_chats(messages)


def test_stops() -> None:
    assert checks.list_stops(("a", "b")) == ["a", "b"]
    assert checks.list_stops(()) == []


@pytest.mark.parametrize("stop", ["x", [""], [5], ["a", None], None, 5])
def test_what_is_no_stop(stop: Any) -> None:
    with pytest.raises(ValueError, match="stop is a list of strings, none of them empty"):
        checks.list_stops(stop)


def test_one_for_all_or_one_each() -> None:
    mixture = {"a": 1, "b": np.float32(0.5)}
    assert checks.adapter_each(None, 2) == [None, None]
    assert checks.adapter_each(mixture, 2) == [mixture, mixture]
    assert checks.adapter_each(("a", None), 2) == ["a", None]
    with pytest.raises(ValueError, match="adapter has 1 entries for 2 prompts"):
        checks.adapter_each(["a"], 2)


@pytest.mark.parametrize("adapter", [42, ["a", 42], {"a": "x"}, {"a": None}, {5: 1.0}, [{"a": "x"}, "b"], b"a"])
def test_what_is_no_adapter(adapter: Any) -> None:
    with pytest.raises(ValueError, match=r"adapter cannot be |a mixture has names and their weights"):
        checks.adapter_each(adapter, 2)


@pytest.mark.parametrize("task_id", ["0", 0.5, True])
def test_what_is_no_task(task_id: Any) -> None:
    checks.check_task_id(None)
    checks.check_task_id(3)
    with pytest.raises(ValueError, match="task_id is a whole number"):
        checks.check_task_id(task_id)
