"""Responses over HTTP, by the official client and as bytes."""

import asyncio
import json

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

EVENT = TypeAdapter(ResponseStreamEvent)
LOGPROBS = ["message.output_text.logprobs"]


async def _create(server, **fields):
    return await server.openai.responses.create(**{"model": "base", "input": "hi", **fields})


def _prompt(engine, tokenizer):
    return tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False)


async def _events(server, **fields):
    """Return a stream's events, each checked against the official client's types."""
    body = {"model": "base", "input": "hi", "stream": True, **fields}
    response = await server.http.post("/v1/responses", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event, strict=True)
        events.append(event)
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    return events


async def test_a_response_has_what_was_asked_for_and_what_it_cost(server, engine, tokenizer):
    response = await _create(
        server,
        instructions="be brief",
        max_output_tokens=5,
        temperature=0.5,
        metadata={"a": "b"},
        user="me",
        top_p=0.9,
        store=False,
        service_tier="auto",
        include=["reasoning.encrypted_content"],
        reasoning={"effort": None, "summary": "auto"},
        text={"format": {"type": "text"}},
    )
    Response.model_validate(response.model_dump(by_alias=True), strict=True)
    assert _prompt(engine, tokenizer) == "<s>system: be brief\n<s>user: hi\nassistant: "
    assert engine.requests[0].sampling.temperature == 0.5
    assert engine.requests[0].sampling.max_tokens == 5
    assert response.id.startswith("resp_")
    assert response.model == "base"
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    [message] = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    assert response.output_text == message.content[0].text == "system: be brief"[: len(response.output_text)] != ""
    assert response.usage.input_tokens == len(engine.requests[0].prompt_token_ids)
    assert response.usage.output_tokens == 5
    assert response.usage.input_tokens_details.cached_tokens == 16
    echoed = ("instructions", "max_output_tokens", "temperature", "top_p", "metadata", "user", "store")
    assert [getattr(response, name) for name in echoed] == ["be brief", 5, 0.5, 0.9, {"a": "b"}, "me", False]


async def test_a_response_that_ends_by_itself_is_completed(server):
    response = await _create(server, input="hi</s>")
    assert (response.status, response.incomplete_details, response.error) == ("completed", None, None)
    assert response.output[0].status == "completed"
    assert response.output_text == "user: hi"


async def test_items_are_the_messages_of_a_chat(server, engine, tokenizer):
    await _create(
        server,
        instructions="be brief",
        max_output_tokens=1,
        input=[
            {"role": "developer", "content": "and kind"},
            {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "three", "annotations": [], "logprobs": []}],
            },
            {"role": "user", "content": "four"},
        ],
    )
    assert _prompt(engine, tokenizer) == (
        "<s>system: be brief\n\nand kind\n<s>user: one\ntwo\n<s>assistant: three\n<s>user: four\nassistant: "
    )


async def test_an_answer_is_the_next_input(server, engine, tokenizer):
    first = await _create(server, input="hi</s>")
    await _create(
        server, input=[{"role": "user", "content": "hi"}, *first.output, {"role": "user", "content": "again"}]
    )
    assert _prompt(engine, tokenizer) == "<s>user: hi\n<s>assistant: user: hi\n<s>user: again\nassistant: "


async def test_extra_fields_are_those_of_chats(server, engine):
    await server.upload("sql")
    extra = {"seed": 3, "top_k": 5, "stop": ["x"], "adapters": [{"name": "sql", "weight": 0.5}]}
    response = await _create(server, model="default", max_output_tokens=1, extra_body=extra)
    sampling = engine.requests[0].sampling
    assert (sampling.seed, sampling.top_k, engine.requests[0].adapters[0].weight) == (3, 5, 0.5)
    assert "sql@1" in response.model
    assert (await _create(server, model="sql", max_output_tokens=1)).model == "sql"


@pytest.mark.parametrize("text", ["hi</s>", "😀 and so on"])
async def test_a_stream_adds_up_to_the_whole(server, text):
    fields = {"input": text, "max_output_tokens": 40, "include": LOGPROBS, "top_logprobs": 2}
    whole = await _create(server, **fields)
    events = await _events(server, **fields)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert {*kinds[4:-4]} == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", whole.status]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(delta["delta"] for delta in deltas) == whole.output_text == events[-4]["text"]
    scores = [score for delta in deltas for score in delta["logprobs"]]
    assert scores == events[-4]["logprobs"] == events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert scores == [score.model_dump() for score in whole.output[0].content[0].logprobs]
    assert len(scores) == whole.usage.output_tokens
    assert all(len(score["top_logprobs"]) == 2 for score in scores)
    last = Response.model_validate(events[-1]["response"])
    assert (last.usage, last.output_text, last.status) == (whole.usage, whole.output_text, whole.status)
    assert (await _create(server, max_output_tokens=1)).output[0].content[0].logprobs == []


async def test_the_official_stream_helper_reads_it(server):
    async with server.openai.responses.stream(model="base", input="hi</s>") as stream:
        kinds = [event.type async for event in stream]
        response = await stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert response.output_text == "user: hi"


async def test_the_oldest_turns_give_way_where_truncation_is_auto(server, engine, tokenizer, check_envelope):
    turns = [
        item
        for number in range(40)
        for item in (
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": f"answer {number}"},
        )
    ]
    body = {"instructions": "be brief", "input": [*turns, {"role": "user", "content": "last"}], "max_output_tokens": 8}
    error = check_envelope(await server.http.post("/v1/responses", json=body), 400, "context_length_exceeded")
    assert error["param"] == "input"
    response = await server.http.post("/v1/responses", json={**body, "truncation": "auto"})
    assert response.status_code == 200
    prompt = _prompt(engine, tokenizer)
    assert prompt.startswith("<s>system: be brief\n<s>user: question ")
    assert prompt.endswith("answer 39\n<s>user: last\nassistant: ")
    oldest = int(prompt.split("question ")[1].split("\n")[0])
    tokens = len(engine.requests[0].prompt_token_ids)
    one_more = len(tokenizer.encode(f"<s>user: question {oldest - 1}\n<s>assistant: answer {oldest - 1}\n").ids)
    assert tokens + 8 <= engine.info.max_model_len < tokens + 8 + one_more
    alone = {**body, "input": "far too long " * 200, "truncation": "auto"}
    check_envelope(await server.http.post("/v1/responses", json=alone), 400, "context_length_exceeded")


REFUSED = [
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": None}, "input"),
    ({"input": [5]}, "input.0"),
    ({"input": [{"type": "web_search_call", "id": "x"}]}, "input.0.type"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
    ({"input": [{"role": "wizard", "content": "x"}]}, "input.0.role"),
    ({"input": [{"role": "user"}]}, "input.0.content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input.0.call_id"),
    ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input.0.name"),
    ({"store": True}, "store"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"messages": []}, "messages"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"n": 2}, "n"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.name"),
    ({"tools": {}}, "tools"),
    ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"include": ["everything"]}, "include.0"),
    ({"metadata": {"a": 5}}, "metadata.a"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"truncation": "middle"}, "truncation"),
    ({"temperature": -1}, "temperature"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 1000}, "input"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"lora_path": ["a", "b"]}, "lora_path"),
]


async def test_what_cannot_be_served_is_refused_with_its_place(server, engine, check_envelope):
    for fields, param in REFUSED:
        response = await server.http.post("/v1/responses", json={"input": "hi", **fields})
        assert check_envelope(response, 400)["param"] == param, fields
        assert engine.requests == []
    check_envelope(await server.http.post("/v1/responses", json={}), 400)
    check_envelope(await server.http.post("/v1/responses", content=b"["), 400)


async def test_what_changes_nothing_is_fine(server):
    neutral = {"store": False, "background": False, "previous_response_id": None, "tools": [], "n": 1, "text": {}}
    neutral |= {"tool_choice": "auto", "parallel_tool_calls": True, "truncation": "disabled", "max_tool_calls": 3}
    neutral |= {"stream_options": None, "prompt_cache_key": "k", "unknown": 5, "text": {"verbosity": "medium"}}
    response = await server.http.post("/v1/responses", json={"input": "hi", "max_output_tokens": 1, **neutral})
    assert response.status_code == 200, response.text


async def test_there_is_no_store(server, check_envelope):
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        response = await server.http.request(method, f"/v1/responses/resp_1{path}")
        check_envelope(response, 404, "response_not_found")
    with pytest.raises(openai.NotFoundError, match="keeps no responses"):
        await server.openai.responses.retrieve("resp_1")


async def test_what_fails_before_the_first_words_is_an_error_and_later_the_last_event(server, engine, check_envelope):
    engine.error = "it broke"
    response = await server.http.post("/v1/responses", json={"input": "hi", "stream": True})
    check_envelope(response, 400, "sequence_failed")
    engine.error = None
    engine.delay = 0.01
    stream = await _create(server, stream=True)
    kinds = []
    async for event in stream:
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            engine.die()
        elif event.type == "response.failed":
            assert event.response.status == "failed"
            assert event.response.error.code == "server_error"
            assert "secret" not in event.response.error.message
    assert kinds[-1] == "response.failed"
    assert server.services.admission.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_it(server, engine, until, stream):
    engine.delay = 0.02
    task = asyncio.create_task(server.http.post("/v1/responses", json={"input": "hi", "stream": stream}))
    await until(lambda: engine.running)
    task.cancel()
    await until(lambda: engine.aborted and server.services.admission.in_flight == 0)
