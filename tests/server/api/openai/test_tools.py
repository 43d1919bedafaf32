"""Tools through a server whose engine says what a test gives it."""

import json

import pytest
from llguidance import LLMatcher

from peftserve.server.wire.messages import SequenceOutput

MESSAGES = [{"role": "user", "content": "Weather in Paris?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
THINKING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}<think>\n"
    "{% if enable_thinking is defined and not enable_thinking %}\n</think>\n\n{% endif %}"
)


@pytest.fixture(autouse=True)
def long_context(engine, model_info, tokenizer):
    engine.info = model_info(tokenizer=tokenizer.to_str(), chat_template=engine.info.chat_template, max_model_len=4096)


@pytest.fixture
def say(engine, tokenizer, monkeypatch):
    """Makes the engine say a text, a few tokens each time."""

    def script(text, reason="stop"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids

        def outputs(request):
            for start in range(0, len(ids), 3):
                last = start + 3 >= len(ids)
                yield SequenceOutput(
                    request_id=request.request_id,
                    token_ids=ids[start : start + 3],
                    finish_reason=reason if last else None,
                )

        monkeypatch.setattr(engine, "_outputs", outputs)

    return script


async def create(server, **fields):
    body = {"model": "base", "messages": MESSAGES, "tools": TOOLS, "max_tokens": 9, **fields}
    return await server.openai.chat.completions.create(**body)


async def streamed(server, **fields):
    """(content, reasoning, calls, finish reason) of a stream; a call is [id, name, arguments]."""
    content, reasoning, calls, reason = "", "", [], None
    async for chunk in await create(server, stream=True, **fields):
        [choice] = chunk.choices
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        reason = choice.finish_reason or reason
        for delta in choice.delta.tool_calls or []:
            if delta.index == len(calls):
                assert delta.id
                assert delta.type == "function"
                calls.append([delta.id, delta.function.name, ""])
            else:
                assert delta.id is None
                assert delta.function.name is None
            calls[delta.index][2] += delta.function.arguments
    return content, reasoning, [(name, json.loads(arguments)) for _, name, arguments in calls], reason


def sent(engine, tokenizer):
    return tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False)


async def test_calls_whole_and_streamed(server, say, engine, tokenizer):
    say(f"I look.\n{CALL}\n{NOW_CALL}")
    choice = (await create(server)).choices[0]
    assert "get_weather" in sent(engine, tokenizer)
    assert engine.requests[-1].sampling.grammar is None
    assert choice.message.content == "I look."
    assert [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls] == [
        ("get_weather", {"city": "Paris"}),
        ("now", {}),
    ]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert choice.finish_reason == "tool_calls"
    assert await streamed(server) == ("I look.", "", [("get_weather", {"city": "Paris"}), ("now", {})], "tool_calls")
    assert await streamed(server, parallel_tool_calls=False) == (
        "I look.",
        "",
        [("get_weather", {"city": "Paris"})],
        "tool_calls",
    )
    assert "found rest | TEXT" in engine.requests[-1].sampling.grammar


async def test_content_is_null_with_calls_alone_and_cut_calls_end_by_length(server, say):
    say(CALL)
    message = (await create(server)).choices[0].message
    assert message.content is None
    assert message.tool_calls[0].id.startswith("call_")
    cut = CALL.index("Par")
    say(CALL[:cut], "length")
    choice = (await create(server)).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls[0].function.arguments) == ("length", '{"city": "')


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": None}])
async def test_nothing_is_a_call_where_none_may_be(server, say, fields):
    say(CALL)
    choice = (await create(server, **fields)).choices[0]
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL, None, "stop")


FORCED = [
    ({"tool_choice": "required"}, {"get_weather", "now"}, "{0,63}"),
    ({"tool_choice": "required", "parallel_tool_calls": False}, {"get_weather", "now"}, None),
    ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, {"now"}, None),
    (
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]},
            }
        },
        {"now"},
        "{0,63}",
    ),
]


@pytest.mark.parametrize(("fields", "names", "several"), FORCED)
async def test_what_has_to_be_called_is_held_by_a_grammar(server, say, engine, fields, names, several):
    say(NOW_CALL)
    choice = (await create(server, **fields)).choices[0]
    assert (choice.message.tool_calls[0].function.name, choice.finish_reason) == ("now", "tool_calls")
    grammar = engine.requests[-1].sampling.grammar
    assert {name for name in ("get_weather", "now") if f'\\"{name}\\"' in grammar} == names
    assert several is None or several in grammar


async def test_only_allowed_tools_are_called(server, say, engine, tokenizer):
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "now"}}]}
    say(CALL)
    choice = (await create(server, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})).choices[0]
    assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
    assert "get_weather" not in sent(engine, tokenizer)


async def test_strict_tools_are_held_to_their_schema_wherever_they_are_called(server, say, engine):
    say("words")
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    assert (await create(server, tools=[strict, NOW])).choices[0].message.content == "words"
    grammar = engine.requests[-1].sampling.grammar
    assert '"city"' in grammar
    assert "found[lazy]" in grammar


async def test_a_schema_without_a_grammar_is_named_where_one_is_needed(server, say, check_envelope):
    say("words")
    odd = {
        "type": "function",
        "function": {"name": "odd", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}},
    }
    assert (await create(server, tools=[NOW, WEATHER, odd])).choices[0].message.content == "words"
    for fields, param in [
        ({"tools": [NOW, WEATHER, odd], "tool_choice": "required"}, "tools[2].function.parameters"),
        ({"functions": [odd["function"]], "function_call": {"name": "odd"}}, "functions[0].parameters"),
    ]:
        response = await server.http.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})
        error = check_envelope(response, 400, "invalid_schema")
        assert error["param"] == param
        assert "not" in error["message"]


async def test_the_older_form_is_answered_in_the_older_form(server, say):
    say(f"{CALL}{NOW_CALL}")
    fields = {"tools": None, "functions": [WEATHER["function"], NOW["function"]], "function_call": "auto"}
    body = {"messages": MESSAGES, "max_tokens": 9, **fields}
    choice = (await server.http.post("/v1/chat/completions", json=body)).json()["choices"][0]
    assert choice["message"]["function_call"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert choice["finish_reason"] == "function_call"
    assert "tool_calls" not in choice["message"]
    name, arguments = "", ""
    del fields["tools"]
    async for chunk in await server.openai.chat.completions.create(
        model="base", messages=MESSAGES, stream=True, **fields
    ):
        if call := chunk.choices[0].delta.function_call:
            name += call.name or ""
            arguments += call.arguments
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Paris"})


async def test_a_call_and_its_result_go_back_into_the_prompt(server, say, engine, tokenizer):
    say(CALL)
    message = (await create(server)).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "22 degrees"}
    say("It is warm.")
    answer = await create(server, messages=[*MESSAGES, message.model_dump(exclude_none=True), result])
    assert answer.choices[0].message.content == "It is warm."
    prompt = sent(engine, tokenizer)
    assert f"assistant: {CALL}\n" in prompt
    assert "user: <tool_response>\n22 degrees\n</tool_response>" in prompt


async def test_what_was_thought_is_told_apart(make_server, engine, model_info, tokenizer, say):
    engine.info = model_info(tokenizer=tokenizer.to_str(), chat_template=THINKING, max_model_len=4096)
    async with make_server() as server:
        say(f"Let me see.\n</think>\n\nYes.\n{NOW_CALL}")
        message = (await create(server)).choices[0].message
        assert (message.content, message.reasoning_content, message.reasoning) == ("Yes.", "Let me see.", "Let me see.")
        assert message.tool_calls[0].function.name == "now"
        assert await streamed(server) == ("Yes.", "Let me see.", [("now", {})], "tool_calls")
        hidden = (await create(server, extra_body={"include_reasoning": False})).choices[0].message
        assert (hidden.content, getattr(hidden, "reasoning_content", None)) == ("Yes.", None)
        await create(server, tool_choice="required")
        assert "start: thoughts calls" in engine.requests[-1].sampling.grammar
        off = {"chat_template_kwargs": {"enable_thinking": False}}
        say("Yes.")
        assert (await create(server, extra_body=off)).choices[0].message.content == "Yes."
        scored = await create(server, tools=None, logprobs=False)
        assert (scored.choices[0].message.content, scored.choices[0].message.reasoning) == (None, "Yes.")


@pytest.mark.parametrize("name", ["none", "hermes", "llama3_json"])
async def test_the_operator_chooses_the_parser(make_server, say, check_envelope, name):
    say(CALL)
    async with make_server(tool_call_parser=name, reasoning_parser="none") as server:
        message = (await create(server)).choices[0].message
        assert (message.tool_calls is not None) == (name == "hermes")
        assert message.content == (None if name == "hermes" else CALL)
        if name == "none":
            body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
            response = await server.http.post("/v1/chat/completions", json=body)
            assert check_envelope(response, 400)["param"] == "tool_choice"


async def test_calls_beside_a_form_are_read_as_the_grammar_writes_them(make_server, say, engine):
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}}
    async with make_server(tool_call_parser="pythonic") as server:
        say('{"name": "get_weather", "parameters": {"city": "Paris"}}')
        choice = (await create(server, **form)).choices[0]
        assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"]
        assert not LLMatcher.validate_grammar(engine.requests[-1].sampling.grammar)
        say("[now()]")
        assert (await create(server)).choices[0].finish_reason == "tool_calls"


async def test_an_answer_of_a_form_or_a_call(server, say, engine):
    say(CALL)
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}}
    choice = (await create(server, **form)).choices[0]
    assert choice.finish_reason == "tool_calls"
    first, answer = json.loads(engine.requests[-1].sampling.grammar)["grammars"]
    assert "start: (calls | @answer)" in first["lark_grammar"]
    assert answer["name"] == "answer"
    assert not LLMatcher.validate_grammar(engine.requests[-1].sampling.grammar)
    await create(server, tool_choice="required", **form)
    assert "answer" not in engine.requests[-1].sampling.grammar
    await create(server, tools=None, **form)
    assert "calls" not in engine.requests[-1].sampling.grammar
