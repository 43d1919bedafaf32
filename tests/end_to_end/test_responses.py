"""Responses and messages say what chats say, through the real server and by the official client."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, Field

from peftserve.server.demo import DEMO_ADAPTERS, DEMO_HELD_OUT, DEMO_MODEL, DEMO_NAME

pytestmark = pytest.mark.slow

NAMES = ("sql", "json", "dates")


@pytest.fixture(scope="module")
def demo(oracle: ModuleType, device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("responses")
    flags = [flag for name in NAMES for flag in ("--adapter", f"{name}={DEMO_ADAPTERS[name]}")]
    flags += ["--served-model-name", DEMO_NAME, "--device", device]
    server = oracle.RunningServer.start(DEMO_MODEL, folder / "state", folder / "log", *flags)
    yield server
    assert server.stop() == 0


def questions() -> list[tuple[str, str]]:
    """Return (adapter, prompt), a few of each."""
    lines = [json.loads(line) for line in Path(DEMO_HELD_OUT).read_text(encoding="utf-8").splitlines()]
    by_adapter = {name: [line["prompt"] for line in lines if line["adapter"] == name][:4] for name in NAMES}
    return [(name, prompt) for name, prompts in by_adapter.items() for prompt in prompts]


async def test_all_three_say_the_same_whole_and_streamed(oracle: ModuleType, demo: Any) -> None:
    async with oracle.Client.connect(demo.url) as client:
        await asyncio.gather(*(ask_everywhere(client.official, demo, *question) for question in questions()))


async def ask_everywhere(client: Any, demo: Any, model: str, prompt: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    chat = await client.chat.completions.create(model=model, messages=messages, temperature=0, max_completion_tokens=64)
    asked = {"model": model, "instructions": "Be brief.", "input": prompt, "temperature": 0, "max_output_tokens": 64}
    response = await client.responses.create(**asked)
    async with client.responses.stream(**asked) as stream:
        events = [event async for event in stream]
    said = [event.delta for event in events if event.type == "response.output_text.delta"]
    streamed = events[-1].response
    body = {"model": model, "system": "Be brief.", "messages": messages[1:], "temperature": 0, "max_tokens": 64}
    message = (await asyncio.to_thread(demo.client.post, "/v1/messages", json=body)).json()
    text = chat.choices[0].message.content
    assert text == response.output_text == "".join(said) == streamed.output_text == message["content"][0]["text"]
    assert response.model == streamed.model == message["model"] == chat.model
    assert response.status == streamed.status
    ended = {"stop": ("completed", "end_turn"), "length": ("incomplete", "max_tokens")}[chat.choices[0].finish_reason]
    assert (response.status, message["stop_reason"]) == ended
    prompt_tokens = chat.usage.prompt_tokens
    assert response.usage.input_tokens == streamed.usage.input_tokens == prompt_tokens
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == prompt_tokens
    generated = chat.usage.completion_tokens
    assert (
        response.usage.output_tokens == streamed.usage.output_tokens == message["usage"]["output_tokens"] == generated
    )


async def test_a_client_that_leaves_a_stream_frees_what_it_held(oracle: ModuleType, demo: Any) -> None:
    async with oracle.Client.connect(demo.url) as client:
        extra = {"ignore_eos": True}
        stream = await client.official.responses.create(model="sql", input="x", stream=True, extra_body=extra)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        await asyncio.to_thread(demo.wait_for_metric, "peftserve_sequences_running", 0)


class City(BaseModel):
    """What an answer is parsed as."""

    name: str = Field(max_length=12)
    big: bool


WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tell the weather.",
    "parameters": City.model_json_schema(),
}


async def test_an_answer_is_parsed_into_a_model(oracle: ModuleType, demo: Any) -> None:
    asked = {"model": "sql", "input": "A city.", "temperature": 0, "max_output_tokens": 128}
    async with oracle.Client.connect(demo.url) as client:
        response = await client.official.responses.parse(**asked, text_format=City)
        async with client.official.responses.stream(**asked, text_format=City) as stream:
            streamed = await stream.get_final_response()
    assert isinstance(response.output_parsed, City)
    assert streamed.output_parsed == response.output_parsed
    body = {"model": "sql", "messages": [{"role": "user", "content": "A city."}], "max_tokens": 128, "temperature": 0}
    body["output_format"] = {"type": "json_schema", "schema": City.model_json_schema()}
    message = (await asyncio.to_thread(demo.client.post, "/v1/messages", json=body)).json()
    assert City.model_validate_json(message["content"][0]["text"]) == response.output_parsed


async def test_a_call_is_forced_and_its_result_goes_back(oracle: ModuleType, demo: Any) -> None:
    asked: dict[str, Any] = {"model": "sql", "tools": [WEATHER], "temperature": 0, "max_output_tokens": 128}
    asked_first = {"input": "The weather?", "tool_choice": {"type": "function", "name": "weather"}}
    async with oracle.Client.connect(demo.url) as client:
        first = await client.official.responses.create(**asked, **asked_first)
        async with client.official.responses.stream(**asked, **asked_first) as stream:
            events = [event async for event in stream]
        [call] = first.output
        City.model_validate_json(call.arguments)
        pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(pieces) == call.arguments
        assert len(pieces) > 1
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "It rains."}
        items = [{"role": "user", "content": "The weather?"}, *first.output, result]
        second = await client.official.responses.create(**{**asked, "max_output_tokens": 32}, input=items)
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.output


async def test_a_tool_of_messages_is_forced_and_its_result_goes_back(demo: Any) -> None:
    tool = {"name": "weather", "input_schema": City.model_json_schema()}
    messages: list[Any] = [{"role": "user", "content": "The weather?"}]
    body: dict[str, Any] = {"model": "sql", "messages": messages, "tools": [tool], "max_tokens": 128, "temperature": 0}
    first = (
        await asyncio.to_thread(demo.client.post, "/v1/messages", json={**body, "tool_choice": {"type": "any"}})
    ).json()
    assert first["stop_reason"] == "tool_use"
    call = first["content"][0]
    City.model_validate(call["input"])
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "It rains."}]}
    messages += [{"role": "assistant", "content": first["content"]}, {"role": "user", "content": [result]}]
    second = await asyncio.to_thread(demo.client.post, "/v1/messages", json=body)
    assert second.status_code == 200, second.text
