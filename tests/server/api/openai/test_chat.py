import openai
import pytest

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
RENDERED = "<s>system: be brief\n<s>user: hi\nassistant: "


async def _create(server, **fields):
    return await server.openai.chat.completions.create(**{"model": "base", "messages": MESSAGES, **fields})


async def test_the_template_makes_the_prompt_and_its_special_tokens(server, engine, tokenizer):
    answer = await _create(server, max_tokens=5)
    ids = tokenizer.encode(RENDERED, add_special_tokens=False).ids
    assert engine.requests[0].prompt_token_ids == ids
    assert ids[0] == 0
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert (
        answer.choices[0].message.content == "system: be brief\n<s>user: hi\n"[: len(answer.choices[0].message.content)]
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(ids)


async def test_the_rest_of_the_context_is_the_default_length(server, engine):
    answer = await _create(server)
    assert answer.usage.total_tokens == engine.info.max_model_len
    answer = await _create(server, max_tokens=50, max_completion_tokens=3)
    assert answer.usage.completion_tokens == 3


async def test_roles_parts_and_template_arguments(server, engine, tokenizer):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]
    await _create(server, messages=messages, max_tokens=1, extra_body={"chat_template_kwargs": {"shout": True}})
    text = tokenizer.decode(engine.requests[0].prompt_token_ids, skip_special_tokens=False)
    assert text == "<s>system: be brief\n<s>user: one\ntwo\nLOUD assistant: "


async def test_the_final_message_can_be_continued(server, engine, tokenizer):
    messages = [*MESSAGES, {"role": "assistant", "content": "Hel"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    await _create(server, messages=messages, max_tokens=1, extra_body=extra)
    text = tokenizer.decode(engine.requests[0].prompt_token_ids, skip_special_tokens=False)
    assert text == "<s>system: be brief\n<s>user: hi\n<s>assistant: Hel"


async def test_a_stream_begins_with_the_role_and_says_what_the_whole_says(server):
    whole = await _create(server, n=2, seed=1, max_tokens=20)
    texts, roles, reasons = ["", ""], [None, None], [None, None]
    stream = await _create(server, n=2, seed=1, max_tokens=20, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    for chunk in chunks[:-1]:
        assert chunk.object == "chat.completion.chunk"
        for choice in chunk.choices:
            roles[choice.index] = roles[choice.index] or choice.delta.role
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == ["assistant", "assistant"]
    assert reasons == ["length", "length"]
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []


async def test_without_the_option_no_chunk_has_usage(server):
    text = (await server.http.post("/v1/chat/completions", json={"messages": MESSAGES, "stream": True})).text
    assert '"usage"' not in text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_with_bytes(server, stream):
    messages = [{"role": "user", "content": "😀"}]
    answer = await _create(server, messages=messages, logprobs=True, top_logprobs=2, max_tokens=30, stream=stream)
    if stream:
        content, text = [], ""
        async for chunk in answer:
            text += chunk.choices[0].delta.content or ""
            content += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    else:
        content, text = answer.choices[0].logprobs.content, answer.choices[0].message.content
    assert len(content) == 30
    assert all(entry.logprob == -0.5 and len(entry.top_logprobs) == 2 for entry in content)
    joined = b"".join(bytes(entry.bytes) for entry in content)
    assert joined.replace(b"<s>", b"").decode(errors="replace") == text


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
REFUSED = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages.0.tool_calls.0.function"),
    ({"messages": [{"role": "tool"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": "", "tool_calls": [CALL]}]}, "messages.0"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [TOOL, TOOL]}, None),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    (
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}]},
        "tools.0.function",
    ),
    ({"tools": [TOOL] * 129}, "tools"),
    ({"tools": [TOOL], "functions": [TOOL["function"]]}, None),
    ({"tool_choice": "required"}, None),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, None),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function.function"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"add_generation_prompt": 1}}, "chat_template_kwargs"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"max_tokens": 1000}, "prompt"),
]


async def test_what_cannot_be_served_is_refused(server, engine, check_envelope):
    for fields, param in REFUSED:
        response = await server.http.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})
        assert response.status_code == 400, fields
        assert check_envelope(response, 400)["param"] == param
        assert engine.requests == []


async def test_neutral_values_of_unsupported_fields_are_fine(server):
    neutral = {"tools": None, "tool_choice": "none", "response_format": {"type": "text"}, "metadata": {"a": "b"}}
    response = await server.http.post("/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 1, **neutral})
    assert response.status_code == 200


async def test_errors_reach_the_official_client_as_its_own(server):
    with pytest.raises(openai.NotFoundError, match="nobody") as caught:
        await _create(server, model="nobody")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        await _create(server, temperature=-1)


async def test_a_model_without_a_template_says_so(make_server, engine, model_info, tokenizer, check_envelope):
    engine.info = model_info(tokenizer=tokenizer.to_str())
    async with make_server() as server:
        response = await server.http.post("/v1/chat/completions", json={"messages": MESSAGES})
        check_envelope(response, 400, "no_chat_template")


async def test_a_model_without_a_tokenizer_takes_ids(make_server, engine, model_info, check_envelope):
    engine.info = model_info()
    async with make_server() as server:
        check_envelope(await server.http.post("/v1/completions", json={"prompt": "abc"}), 400)
        body = {"prompt": [7, 8], "max_tokens": 3, "return_token_ids": True, "logprobs": 1}
        choice = (await server.http.post("/v1/completions", json=body)).json()["choices"][0]
        assert choice["text"] == ""
        assert choice["token_ids"] == [7, 8, 7]
        check_envelope(await server.http.post("/detokenize", json={"tokens": [1]}), 400)
