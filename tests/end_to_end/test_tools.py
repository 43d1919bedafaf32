"""Tools and reasoning through a real server, by the official client, with a model whose template knows them.

The model is the demo's under another template and with marks for three of its special tokens, so that it can be made to
begin a call by a bias; it writes nonsense, which the grammars hold to calls.
"""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import openai
import pytest

from peftserve.server.demo import DEMO_MODEL

pytestmark = pytest.mark.slow

QWEN = Path(__file__).parents[1] / "server/api/assistant/templates/qwen.jinja"
OPEN, CLOSE, THOUGHT = 3, 4, 5  # token ids
MARKS = {"<|system|>": "<tool_call>", "<|user|>": "</tool_call>", "<|assistant|>": "</think>"}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city"],
}
UNIT = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "set_unit", "parameters": UNIT}},
]
SCHEMAS = {"weather": CITY, "set_unit": UNIT}
QUESTION = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def url(oracle: ModuleType, device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tools")
    model = folder / "model"
    shutil.copytree(DEMO_MODEL, model)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        text = (model / file).read_text()
        for token, mark in MARKS.items():
            text = text.replace(token, mark)
        (model / file).write_text(text)
    generate = "{% if add_generation_prompt %}<think>\n{% if not think %}\n</think>\n\n{% endif %}{% endif %}"
    (model / "chat_template.jinja").write_text(QWEN.read_text().rstrip("\n") + generate)
    flags = ("--device", device, "--served-model-name", "demo")
    server = oracle.RunningServer.start(model, folder / "state", folder / "server.log", *flags)
    yield server.url
    server.stop()


@pytest.fixture
async def client(url: str) -> Any:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=180) as client:
        yield client


async def create(client: openai.AsyncOpenAI, **fields: Any) -> Any:
    body = {"model": "demo", "messages": [QUESTION], "tools": TOOLS, "max_tokens": 100, "temperature": 1.0, **fields}
    return await client.chat.completions.create(**body)


def check(calls: list[Any]) -> list[str]:
    """Return the names of calls whose arguments are of their schemas."""
    for call in calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return [call.function.name for call in calls]


async def test_what_has_to_be_called_is_called(client: openai.AsyncOpenAI) -> None:
    named = {"type": "function", "function": {"name": "set_unit"}}
    forced: list[Any] = ["required", named]
    answers = await asyncio.gather(
        *(
            create(client, tool_choice=choice, parallel_tool_calls=False, n=3, seed=seed)
            for seed in (1, 2)
            for choice in forced
        )
    )
    for number, answer in enumerate(answers):
        for choice in answer.choices:
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None
            [name] = check(choice.message.tool_calls)
            assert name == "set_unit" or number % 2 == 0
    several = await create(client, tool_choice="required", seed=3, max_tokens=140)
    calls = several.choices[0].message.tool_calls
    assert calls
    check(calls if several.choices[0].finish_reason == "tool_calls" else calls[:-1])


async def test_a_stream_says_what_the_whole_says(client: openai.AsyncOpenAI) -> None:
    fields: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False, "seed": 7}
    whole = (await create(client, **fields)).choices[0].message.tool_calls[0].function
    name, arguments, pieces = "", "", 0
    async for chunk in await create(client, stream=True, **fields):
        for delta in chunk.choices[0].delta.tool_calls or []:
            name += delta.function.name or ""
            arguments += delta.function.arguments or ""
            pieces += 1
    assert (name, arguments) == (whole.name, whole.arguments)
    assert pieces > 3


async def test_a_strict_tool_is_called_as_its_schema_has_it(client: openai.AsyncOpenAI) -> None:
    """A bias makes the model begin a call; all that follows is the grammar's."""
    strict = [{"type": "function", "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    for seed in range(3):
        choice = (
            await create(client, tools=strict, parallel_tool_calls=False, logit_bias={str(OPEN): 100}, seed=seed)
        ).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert len(check(choice.message.tool_calls)) == 1


async def test_a_call_its_result_and_the_answer(client: openai.AsyncOpenAI) -> None:
    message = (await create(client, tool_choice="required", parallel_tool_calls=False, seed=1)).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "22"}
    history = [QUESTION, message.model_dump(exclude_none=True), result]
    answer = await create(client, messages=history, tool_choice="none", max_tokens=5)
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage.prompt_tokens > 100


async def test_thoughts_come_first_and_apart(client: openai.AsyncOpenAI) -> None:
    think = {"chat_template_kwargs": {"think": True}}
    fields: dict[str, Any] = {"extra_body": think, "logit_bias": {str(THOUGHT): 4}, "seed": 5, "max_tokens": 140}
    forced = await create(client, tool_choice="required", parallel_tool_calls=False, n=4, **fields)
    thought = [getattr(choice.message, "reasoning_content", "") for choice in forced.choices]
    assert any(thought)
    assert all("</think>" not in words for words in thought)
    called = [choice for choice in forced.choices if choice.finish_reason == "tool_calls"]
    assert called
    for choice in called:
        check(choice.message.tool_calls)
    whole = (await create(client, tools=None, **fields)).choices[0].message
    content, reasoning = "", ""
    async for chunk in await create(client, tools=None, stream=True, **fields):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        reasoning += getattr(delta, "reasoning_content", None) or ""
    assert (content, reasoning) == (whole.content or "", getattr(whole, "reasoning_content", ""))
