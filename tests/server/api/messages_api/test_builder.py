"""Thinking, texts and calls of one answer, over HTTP."""

import json

TOOLS = [
    {"name": "weather", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}},
    {"name": "stop", "input_schema": {"type": "object", "properties": {}}},
]
TEXT = (
    "<think>hm</think>I look.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"at": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
)


def _posting(server, **fields):
    async def post(words, seed):
        messages = [{"role": "user", "content": words}]
        body = {"model": "base", "messages": messages, "max_tokens": 400, "tools": TOOLS, "seed": seed, **fields}
        return await server.http.post("/v1/messages", json=body)

    return post


async def test_each_part_of_an_answer_is_a_block(speaker, engine, tokenizer):
    message = (await speaker.say(_posting(speaker), TEXT)).json()
    thinking, text, weather, stop = message["content"]
    assert thinking == {"type": "thinking", "thinking": "hm", "signature": ""}
    assert (text["type"], text["text"].strip()) == ("text", "I look.")
    assert (weather["type"], weather["name"], weather["input"]) == ("tool_use", "weather", {"at": "Köln"})
    assert (stop["name"], stop["input"]) == ("stop", {})
    assert weather["id"] != stop["id"]
    assert message["stop_reason"] == "tool_use"
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "It rains."} for call in (weather, stop)]
    conversation = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": results},
    ]
    body = {"messages": conversation, "tools": TOOLS, "max_tokens": 1}
    assert (await speaker.http.post("/v1/messages", json=body)).status_code == 200
    prompt = tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False)
    assert prompt.index("Weather?") < prompt.index("Köln") < prompt.index("It rains.")


async def test_a_stream_of_blocks_adds_up_to_the_whole(speaker):
    whole = (await speaker.say(_posting(speaker), TEXT)).json()
    lines = (await speaker.say(_posting(speaker, stream=True), TEXT)).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    blocks, opened = [], None
    for event in events:
        if event["type"] == "content_block_start":
            assert opened is None
            assert event["index"] == len(blocks)
            opened = event["index"]
            blocks.append({**event["content_block"], "said": ""})
        elif event["type"] == "content_block_delta":
            assert event["index"] == opened
            [said] = [value for name, value in event["delta"].items() if name != "type"]
            blocks[-1]["said"] += said
        elif event["type"] == "content_block_stop":
            opened = None
    assert [block["type"] for block in blocks] == [block["type"] for block in whole["content"]]
    for block, wanted in zip(blocks, whole["content"], strict=True):
        said = json.loads(block["said"]) if block["type"] == "tool_use" else block["said"]
        assert said == wanted[{"thinking": "thinking", "text": "text", "tool_use": "input"}[block["type"]]]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_a_call_that_is_cut_short_keeps_what_there_is(speaker):
    message = (await speaker.say(_posting(speaker, max_tokens=60), TEXT)).json()
    assert message["stop_reason"] == "max_tokens"
    assert message["content"][-1]["type"] in ("tool_use", "text")


async def test_what_a_chat_refuses_is_told_by_our_names(speaker, engine):
    twice = {"tools": [TOOLS[0], TOOLS[0]]}
    nobody = {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "nobody"}}
    bad = {"tools": [{"name": "f", "input_schema": {"type": "string"}}]}
    for fields, named in (
        (twice, "tools[1]"),
        (nobody, "nobody"),
        (bad, "tools.0"),
        ({"tool_choice": {"type": "any"}}, "tools"),
    ):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, **fields}
        response = await speaker.http.post("/v1/messages", json=body)
        assert response.status_code == 400
        assert named in response.json()["error"]["message"], response.text
        assert engine.requests == []
