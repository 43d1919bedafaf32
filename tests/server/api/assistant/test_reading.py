"""Every family's messages through the parser, whole and cut anywhere."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.server.api.assistant.families import FAMILIES, find_family
from peftserve.server.api.assistant.reading import Reading
from peftserve.server.api.assistant.thinking import THINKING, find_thinking

NAMES = frozenset({"get_weather", "get", "now"})
PARIS = '{"city": "Paris {[\\"x", "days": [1, 2]}'
CALL = '{"name": "get_weather", "arguments": ' + PARIS + "}"
LLAMA = '{"name": "get_weather", "parameters": ' + PARIS + "}"
NOW = '{"name": "now", "arguments": {}}'
WEATHER = ("get_weather", json.loads(PARIS))
HARMONY = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"


def read(pieces, family=None, thinking=None, **fields):
    """(content, reasoning, calls) of a message."""
    chosen = find_family(family, None) if family else None
    reading = Reading(chosen, NAMES, thinking=THINKING.get(thinking), **fields)
    parser = reading.new_parser()
    parts = [*map(parser.push, pieces), parser.flush()]
    calls = {}
    for delta in (delta for part in parts for delta in part.calls):
        call = calls.setdefault(delta.index, [delta.id, delta.name, ""])
        assert (delta.id, delta.name) == (call[0], call[1]) if call[2] == "" and delta.id else delta.id is None
        call[2] += delta.arguments
    assert all(id_ for id_, _, _ in calls.values())
    assert list(calls) == list(range(len(calls)))
    said = [(name, _loaded(arguments)) for _, name, arguments in calls.values()]
    return "".join(p.content for p in parts), "".join(p.reasoning for p in parts), said


def _loaded(arguments):
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


MESSAGES = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", [WEATHER]),
    (
        "hermes",
        f"I look.\n\n<tool_call>{CALL}</tool_call>\n<tool_call>{NOW}</tool_call>\n",
        "I look.",
        [WEATHER, ("now", {})],
    ),
    ("hermes", f"<tool_call>{CALL}", "", [WEATHER]),
    ("hermes", f"<tool_call>{CALL}</tool_call> done", "done", [WEATHER]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "id": [2], "name": "get"}</tool_call>', "", [("get", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "get", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("get", {"a": 1})]),
    ("hermes", '<tool_call>{"name": "get", "arguments": null}</tool_call>', "", [("get", {})]),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', "", [("now", {})]),
    ("hermes", '<tool_call>{"name": "get", "arguments": {"a": 1', "", [("get", '{"a": 1')]),
    ("hermes", '<tool_call>{"name": "get", "arguments": {"a": </tool_call> so', "so", [("get", '{"a": ')]),
    ("hermes", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', None, []),
    ("hermes", "<tool_call>what</tool_call> a < b <tool", None, []),
    ("hermes", '<tool_call>{"name": 3}</tool_call>', None, []),
    ("hermes", f"  just text {CALL}\n", None, []),
    ("llama3_json", LLAMA, "", [WEATHER]),
    ("llama3_json", f"<|python_tag|>{LLAMA}; {NOW}", "", [WEATHER, ("now", {})]),
    ("llama3_json", f"\n{LLAMA}\n{NOW}\n", "", [WEATHER, ("now", {})]),
    ("llama3_json", f"Well. <|python_tag|>{LLAMA}", "Well.", [WEATHER]),
    ("llama3_json", f"<|python_start|>{LLAMA}<|python_end|>", "", [WEATHER]),
    ("llama3_json", f"Here is JSON: {LLAMA}", None, []),
    ("llama3_json", '{"name": "rm", "parameters": {}}', None, []),
    ("llama3_json", '{"a": {"b": [1, "}"]}} text', None, []),
    ("llama3_json", "<|python_tag|>print(1)", None, []),
    ("llama3_json", "<|python_tag|> {} then", None, []),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {NOW}]", "", [WEATHER, ("now", {})]),
    ("mistral", f"[TOOL_CALLS][{CALL}]", "", [WEATHER]),
    ("mistral", f"[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]now[ARGS]{{}}", "", [WEATHER, ("now", {})]),
    ("mistral", f"Sure. [TOOL_CALLS]get_weather[CALL_ID]abc123def[ARGS]{PARIS}", "Sure.", [WEATHER]),
    ("mistral", f"[TOOL_CALLS]get_weather{PARIS}", "", [WEATHER]),
    ("mistral", "[TOOL_CALLS]rm[ARGS]{}", None, []),
    ("mistral", f"[TOOL_CALLS] [{CALL}, oops]", ", oops]", [WEATHER]),
    ("mistral", "[TOOL_CALLS] nothing", None, []),
    ("pythonic", '[get_weather(city="Paris {[\\"x", days=[1, 2]), now()]', "", [WEATHER, ("now", {})]),
    (
        "pythonic",
        "<|python_start|>[get(a={'b': None}, c=true, d=-1.5)]<|python_end|>",
        "",
        [("get", {"a": {"b": None}, "c": True, "d": -1.5})],
    ),
    ("pythonic", "[get(1)]", None, []),
    ("pythonic", "[get(a=b)]", None, []),
    ("pythonic", "[get(a=1e999)] [1, 2]", None, []),
    ("pythonic", "[1, 2] is a list", None, []),
    ("pythonic", "[now(), get(a=", ", get(a=", [("now", {})]),
    (
        "openai",
        f"{HARMONY}<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{PARIS}",
        "",
        [WEATHER],
    ),
    ("openai", f"{HARMONY} to=functions.now<|channel|>commentary json<|message|>{{}}<|call|>", "", [("now", {})]),
    ("openai", f"{HARMONY}<|channel|>final<|message|>It is warm.<|return|>", "It is warm.", []),
    (
        "openai",
        f"{HARMONY}<|channel|>commentary<|message|>First. <|end|><|start|>assistant<|channel|>final<|message|>Then.",
        "First. Then.",
        [],
    ),
    ("openai", "plain words", "plain words", []),
    ("openai", "<|channel|>fin", "<|channel|>fin", []),
]


@settings(max_examples=150)
@given(st.sampled_from(MESSAGES), st.data())
def test_any_cut_says_what_the_whole_says(message, data):
    family, text, content, calls = message
    whole = read([text], family)
    assert whole[0] == (text if content is None else content)
    assert whole[1] == ("Let me see." if HARMONY in text else "")
    assert whole[2] == calls
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    assert read([text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)], family) == whole


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: f"{message[0]}-{message[1][:20]}")
def test_characters_one_by_one(message):
    family, text, _, _ = message
    assert read(text, family) == read([text], family)


ANYTHING = st.lists(
    st.sampled_from([*'{}[]()"\\:;,a= \n<', "get", "now", '"name"', '"arguments"', CALL, LLAMA, NOW])
    | st.sampled_from(sorted({mark for family in FAMILIES for mark in family.marks} | {"<think>", "</think>"})),
    max_size=14,
)


@settings(max_examples=300)
@given(
    ANYTHING, st.sampled_from([family.name for family in FAMILIES]), st.sampled_from([None, *THINKING]), st.booleans()
)
def test_nothing_that_a_model_writes_is_an_error_or_read_in_two_ways(pieces, family, thinking, is_open):
    text = "".join(pieces)
    whole = read([text], family, thinking, is_open=is_open)
    assert read(pieces, family, thinking, is_open=is_open) == whole
    assert read(text, family, thinking, is_open=is_open) == whole
    if not whole[2] and thinking is None and family != "openai":
        assert whole[0] == text, "what is no call is content, all of it"


THOUGHTS = [
    ("qwen3", False, "<think>\nI think.\n</think>\n\nYes.", "Yes.", "I think."),
    ("qwen3", False, "Yes. <think>", "Yes. <think>", ""),
    ("qwen3", True, "I think.</think>Yes.", "Yes.", "I think."),
    ("qwen3", True, "I think, and", "", "I think, and"),
    ("deepseek_r1", True, "I </ think\n</think>\n", "", "I </ think"),
    ("mistral", False, "[THINK]Hm.[/THINK]Yes.", "Yes.", "Hm."),
    ("openai_gptoss", False, f"{HARMONY}<|channel|>final<|message|>Yes.", "Yes.", "Let me see."),
]


@pytest.mark.parametrize(("name", "is_open", "text", "content", "reasoning"), THOUGHTS)
def test_what_was_thought(name, is_open, text, content, reasoning):
    for pieces in ([text], text):
        assert read(pieces, None, name, is_open=is_open) == (content, reasoning, [])


def test_calls_stand_behind_what_was_thought():
    text = f"<think>No {CALL} <tool_call> yet.</think>\n<tool_call>{CALL}</tool_call>"
    assert read([text], "hermes", "qwen3") == ("", f"No {CALL} <tool_call> yet.", [WEATHER])


def test_only_the_first_call_where_one_is_asked_for():
    text = f"<tool_call>{CALL}</tool_call><tool_call>{NOW}</tool_call>"
    assert read(text, "hermes", single=True) == ("", "", [WEATHER])


def test_arguments_come_as_they_are_written():
    parser = Reading(find_family("hermes", None), NAMES).new_parser()
    first = parser.push('<tool_call>{"name": "get", "arguments": {"a')
    assert [(delta.name, delta.arguments) for delta in first.calls] == [("get", '{"a')]
    second = parser.push('": 1')
    assert [(delta.id, delta.name, delta.arguments) for delta in second.calls] == [(None, None, '": 1')]


def test_where_the_prompt_leaves_a_thought_open():
    qwen, r1 = THINKING["qwen3"], THINKING["deepseek_r1"]
    assert qwen.is_open("<|im_start|>assistant\n<think>\n")
    assert not qwen.is_open("<|im_start|>assistant\n")
    assert not qwen.is_open("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert qwen.is_closed("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not qwen.is_closed("<|im_start|>assistant\n<think>\n")
    assert not THINKING["openai_gptoss"].is_closed("<|end|>")
    assert r1.is_open("<|Assistant|>")
    assert not r1.is_open("<|Assistant|><think>\n</think>\n")
    assert r1.is_open("<think>Hm", goes_on=True)
    assert not r1.is_open("<think>Hm</think>So", goes_on=True)


@pytest.mark.parametrize(
    ("template", "family", "thinking"),
    [
        ("{{ '<tool_call>' }}{{ '<think>' }}", "hermes", "qwen3"),
        ("[AVAILABLE_TOOLS][TOOL_CALLS][THINK]", "mistral", "mistral"),
        ("{{ '<|python_tag|>' }}", "llama3_json", None),
        ("[func_name1(params_name1=params_value1)]", "pythonic", None),
        ("<|channel|>analysis<|message|>", "openai", "openai_gptoss"),
        ("{{ tools }}", "hermes", None),
    ],
)
def test_what_a_template_tells(template, family, thinking):
    assert find_family("auto", template).name == family
    assert find_thinking("auto", template) == THINKING.get(thinking)
    assert find_family("none", template) is None
    assert find_thinking("none", template) is None
    assert find_family("llama4_json", template).name == "llama3_json"
