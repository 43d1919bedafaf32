"""Reasoning, texts and calls of one answer, over HTTP by the official client."""

import json

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

EVENT = TypeAdapter(ResponseStreamEvent)
SCHEMA = {"type": "object", "properties": {"at": {"type": "string"}}}
TOOLS = [{"type": "function", "name": "weather", "parameters": SCHEMA}, {"type": "function", "name": "stop"}]
CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"at": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
)


def _asking(server, **fields):
    async def post(words, seed):
        extra = {"seed": seed}
        asked = {"model": "base", "input": words, "tools": TOOLS, "max_output_tokens": 400, **fields}
        return await server.openai.responses.create(**asked, extra_body=extra)

    return post


async def test_each_part_of_an_answer_is_an_item(speaker):
    response = await speaker.say(_asking(speaker), f"<think>\nWhere?\n</think>\n\nLet me look.\n{CALLS}")
    reasoning, message, weather, stop = response.output
    assert [content.text.strip() for content in reasoning.content] == ["Where?"]
    assert reasoning.summary == []
    assert message.content[0].text.strip() == "Let me look."
    assert (weather.type, weather.name, json.loads(weather.arguments)) == ("function_call", "weather", {"at": "Köln"})
    assert (stop.name, json.loads(stop.arguments)) == ("stop", {})
    assert len({weather.call_id, stop.call_id, weather.id, stop.id}) == 4
    assert {item.status for item in response.output} == {"completed"}
    assert response.status == "completed"
    assert 0 < response.usage.output_tokens_details.reasoning_tokens < response.usage.output_tokens
    assert [tool.name for tool in response.tools] == ["weather", "stop"]


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_a_stream_of_parts_adds_up_to_the_whole(speaker, summary):
    text = f"<think>hm</think>I look. {CALLS}"
    fields = {"reasoning": {"summary": summary}} if summary else {}
    whole = await speaker.say(_asking(speaker, **fields), text)

    async def stream(words, seed):
        asked = {"input": words, "tools": TOOLS, "max_output_tokens": 400, "seed": seed, "stream": True, **fields}
        return (await speaker.http.post("/v1/responses", json={"model": "base", **asked})).text

    lines = (await speaker.say(stream, text)).splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    for event in events:
        EVENT.validate_python(event, strict=True)
    last = events[-1]["response"]
    assert events[-1]["type"] == "response.completed"
    assert [item["type"] for item in last["output"]] == [item.type for item in whole.output]
    sums = {}
    for event in events:
        if event["type"].endswith(".delta"):
            sums[event["output_index"]] = sums.get(event["output_index"], "") + event["delta"]
    for number, (item, streamed) in enumerate(zip(whole.output, last["output"], strict=True)):
        said = _said(item.model_dump())
        assert said == _said(streamed) == sums[number]
    assert last["usage"] == whole.usage.model_dump(exclude_unset=True)
    kinds = {event["type"] for event in events}
    assert ("response.reasoning_summary_text.delta" in kinds) == (summary is not None)
    assert ("response.reasoning_text.delta" in kinds) == (summary is None)


def _said(item):
    if item["type"] == "function_call":
        return item["arguments"]
    return (item.get("content") or item["summary"])[0]["text"]


async def test_calls_and_their_results_are_the_next_input(speaker, engine, tokenizer):
    first = await speaker.say(_asking(speaker), f"<think>hm</think>{CALLS}")
    called = [item for item in first.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "It rains."} for call in called]
    await speaker.openai.responses.create(
        model="base",
        tools=TOOLS,
        input=[{"role": "user", "content": "Weather?"}, *first.output, *results],
        max_output_tokens=1,
    )
    prompt = tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False)
    assert prompt.index("Weather?") < prompt.index("Köln") < prompt.index("It rains.")
    assert prompt.count("It rains.") == 2


async def test_a_call_that_is_cut_short_is_incomplete(speaker):
    response = await speaker.say(_asking(speaker, max_output_tokens=30), CALLS)
    assert response.status == "incomplete"
    assert response.output[-1].status == "incomplete"


REFUSED = [
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].name"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "nobody"}}, "nobody"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
]


async def test_what_a_chat_refuses_is_told_by_our_names(speaker, engine, check_envelope):
    for fields, named in REFUSED:
        response = await speaker.http.post("/v1/responses", json={"input": "hi", **fields})
        error = check_envelope(response, 400)
        assert named in f"{error['param']} {error['message']}", (fields, error)
        assert engine.requests == []
