"""Where, when and how often the schemas of tools are checked."""

import threading
from collections import OrderedDict

import pytest

from peftserve.server.api.openai import grammar_checks, tool_grammars

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest.fixture(autouse=True)
def nothing_is_known(engine, model_info, tokenizer, monkeypatch):
    engine.info = model_info(tokenizer=tokenizer.to_str(), chat_template=engine.info.chat_template, max_model_len=4096)
    monkeypatch.setattr(tool_grammars, "_sound", OrderedDict())


@pytest.fixture
def ask(server):
    async def ask(content="Weather?"):
        messages = [{"role": "user", "content": content}]
        body = {"messages": messages, "tools": TOOLS, "tool_choice": "required", "max_tokens": 9}
        return await server.http.post("/v1/chat/completions", json=body)

    return ask


async def test_schemas_are_checked_off_the_event_loop_and_once(ask, monkeypatch):
    checked = []

    def fault_of(grammar):
        checked.append(threading.current_thread().name)
        return ""

    monkeypatch.setattr(tool_grammars, "fault_of", fault_of)
    for _ in range(2):
        assert (await ask()).status_code == 200
    assert len(checked) == len(TOOLS)
    assert all(name.startswith("forms") for name in checked)


async def test_the_schemas_of_a_request_have_one_time_together(ask, monkeypatch, check_envelope):
    monkeypatch.setattr(grammar_checks, "BEGINNING", 0)
    error = check_envelope(await ask(), 400, "invalid_schema")
    assert error["param"] == "tools"
    assert "too long" in error["message"]
    end = threading.Event()
    monkeypatch.setattr(grammar_checks, "SECONDS", 0)
    monkeypatch.setattr(tool_grammars, "_check_rules", lambda rules, is_over: end.wait(30))
    error = check_envelope(await ask(), 400, "invalid_schema")
    end.set()
    assert "too long" in error["message"]


async def test_what_was_refused_as_too_slow_is_refused_again(ask, monkeypatch, check_envelope):
    calls = iter([False, True, False, True])
    check = tool_grammars._check_rules
    monkeypatch.setattr(tool_grammars, "_check_rules", lambda rules, _: check(rules, lambda: next(calls)))
    for _ in range(2):
        check_envelope(await ask(), 400, "invalid_schema")
    assert next(calls, None) is None


async def test_no_schema_is_compiled_for_a_prompt_that_does_not_fit(ask, monkeypatch, check_envelope):
    monkeypatch.setattr(tool_grammars, "fault_of", lambda grammar: pytest.fail("compiled"))
    check_envelope(await ask("x" * 300_000), 400, "context_length_exceeded")
