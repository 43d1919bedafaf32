"""Messages over HTTP, in the shapes that Anthropic's clients send and read."""

import asyncio
import json

import pytest

MESSAGES = [{"role": "user", "content": "hi"}]


async def _post(server, **fields):
    body = {"model": "base", "messages": MESSAGES, "max_tokens": 5, **fields}
    return await server.http.post("/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"})


def _check_error(response, status, kind):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()
    assert (set(error), error["type"]) == ({"type", "error"}, "error")
    assert error["error"]["type"] == kind
    assert "/secret" not in response.text
    return error["error"]["message"]


def _prompt(engine, tokenizer):
    return tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False)


async def _events(server, **fields):
    response = await _post(server, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    return _parsed(response.text)


def _parsed(text):
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def test_a_message_has_blocks_a_reason_and_its_usage(server, engine, tokenizer):
    response = await _post(
        server,
        system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        temperature=0.5,
        top_k=7,
        metadata={"user_id": "me"},
    )
    assert _prompt(engine, tokenizer) == "<s>system: be brief\n<s>user: hi\nassistant: "
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens) == (0.5, 7, 5)
    message = response.json()
    assert message["id"].startswith("msg_")
    assert [message[name] for name in ("type", "role", "model")] == ["message", "assistant", "base"]
    [block] = message["content"]
    assert block["type"] == "text"
    assert "system: be brief".startswith(block["text"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
    usage = message["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == len(engine.requests[0].prompt_token_ids)
    assert (usage["cache_read_input_tokens"], usage["output_tokens"]) == (16, 5)


async def test_why_it_ended(server):
    ended = (await _post(server, messages=[{"role": "user", "content": "hi</s>"}], max_tokens=50)).json()
    assert (ended["stop_reason"], ended["content"][0]["text"]) == ("end_turn", "user: hi")
    stopped = (await _post(server, stop_sequences=["hi", "zz"], max_tokens=50)).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "hi")
    assert stopped["content"][0]["text"] == "user: "


async def test_messages_of_one_role_are_one_and_an_answer_can_be_begun(server, engine, tokenizer):
    messages = [
        {"role": "user", "content": "one"},
        {"role": "user", "content": [{"type": "text", "text": "two"}]},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "th"}]},
    ]
    await _post(server, messages=messages)
    assert _prompt(engine, tokenizer) == "<s>user: one\ntwo\n<s>assistant: th"


async def test_a_stream_adds_up_to_the_whole(server):
    fields = {"messages": [{"role": "user", "content": "😀 so</s>"}], "max_tokens": 60}
    whole = (await _post(server, **fields)).json()
    events = await _events(server, **fields)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert {*kinds[3:-3]} == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert events[0]["message"]["usage"] == {**whole["usage"], "output_tokens": 0}
    assert events[2]["content_block"] == {"type": "text", "text": "", "citations": None}
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == whole["content"][0]["text"]
    assert events[-2]["delta"] == {name: whole[name] for name in ("stop_reason", "stop_sequence")}
    assert events[-2]["usage"] == whole["usage"]


async def test_tokens_are_counted(server, engine, tokenizer):
    response = await server.http.post("/v1/messages/count_tokens", json={"model": "base", "messages": MESSAGES})
    prompt = tokenizer.encode("<s>user: hi\nassistant: ", add_special_tokens=False).ids
    assert response.json() == {"input_tokens": len(prompt)}
    assert engine.requests == []


async def test_more_tokens_than_fit_the_context_are_counted(server, engine, tokenizer):
    text = "the quick " * 1000
    body = {"messages": [{"role": "user", "content": text}]}
    response = await server.http.post("/v1/messages/count_tokens", json=body)
    prompt = tokenizer.encode(f"<s>user: {text}\nassistant: ", add_special_tokens=False).ids
    assert len(prompt) > engine.info.max_model_len
    assert response.json() == {"input_tokens": len(prompt)}
    cut = await server.http.post("/v1/messages/count_tokens", json={**body, "truncate_prompt_tokens": 5})
    assert cut.json() == {"input_tokens": 5}


REFUSED = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "no tool_use block"),
    ({"system": [{"type": "image"}]}, "system.0"),
    ({"tools": [{"name": "x"}]}, "tools.0.input_schema"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice"),
    ({"stop": ["x"]}, "stop_sequences"),
    ({"mcp_servers": [{}]}, "mcp_servers"),
    ({"temperature": -1}, "temperature"),
    ({"top_k": -5}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"max_tokens": 1000}, "maximum context length"),
]


async def test_what_cannot_be_served_is_refused_with_its_place(server, engine):
    for fields, named in REFUSED:
        message = _check_error(await _post(server, **fields), 400, "invalid_request_error")
        assert named in message, (fields, message)
        assert engine.requests == []


async def test_errors_have_anthropics_envelope_whoever_refuses(make_server, engine):
    async with make_server(api_keys=("k",), body_limit=1 << 20) as server:
        _check_error(await _post(server), 401, "authentication_error")
        for headers in ({"x-api-key": "wrong"}, {"Authorization": "Bearer wrong", "x-api-key": "k"}):
            response = await server.http.post("/v1/messages", json={}, headers=headers)
            _check_error(response, 401, "authentication_error")
        server.http.headers["x-api-key"] = "k"
        assert (await _post(server)).status_code == 200
        assert (await server.http.get("/v1/models")).status_code == 401  # the header is for this route alone
        _check_error(await _post(server, model="nobody"), 404, "not_found_error")
        _check_error(await _post(server, system="x" * (1 << 21)), 413, "request_too_large")
        _check_error(await server.http.get("/v1/messages"), 405, "invalid_request_error")
        _check_error(await server.http.post("/v1/messages/batches", json={}), 404, "not_found_error")
        engine.die()
        _check_error(await _post(server), 503, "overloaded_error")


async def test_what_fails_before_the_first_words_is_an_error_and_later_the_last_event(server, engine):
    engine.error = "it broke"
    _check_error(await _post(server, stream=True), 400, "invalid_request_error")
    engine.error, engine.delay = None, 0.02
    body = {"model": "base", "messages": MESSAGES, "max_tokens": 100, "stream": True}
    async with server.http.stream("POST", "/v1/messages", json=body) as stream:
        engine.die()
        events = _parsed((await stream.aread()).decode())
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "overloaded_error"
    assert server.services.admission.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_it(server, engine, until, stream):
    engine.delay = 0.02
    task = asyncio.create_task(_post(server, stream=stream, max_tokens=100))
    await until(lambda: engine.running)
    task.cancel()
    await until(lambda: engine.aborted and server.services.admission.in_flight == 0)
