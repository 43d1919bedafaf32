"""Answers of random schemas through a real server, by the official client: everything at once, in too little memory.

The model is random and so writes nonsense, with adapters of several methods on it; the grammars make it JSON.
"""

import asyncio
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

import jsonschema
import openai
import pytest

pytestmark = pytest.mark.slow

NEIGHBOUR = [7, 250, 31, 90, 44]
Schema = dict[str, Any]


def random_schema(random: Random, depth: int = 2) -> Schema:
    low = random.randint(-50, 50)
    leaves: list[Schema] = [
        {"type": "integer", "minimum": low, "maximum": low + random.randint(0, 500)},
        {"type": "string", "minLength": random.randint(0, 2), "maxLength": random.randint(2, 6)},
        {"enum": random.sample([1, "a", None, True, 'q"', "é"], 2)},
        {"type": "string", "pattern": r"^[a-c]{2}-\d$"},
        {"type": ["boolean", "null"]},
    ]
    if depth == 0:
        return random.choice(leaves)
    inner = [random_schema(random, depth - 1) for _ in range(2)]
    return random.choice(
        [
            {"type": "array", "items": inner[0], "minItems": 1, "maxItems": 2},
            {"anyOf": inner},
            {
                "type": "object",
                "properties": {"a": inner[0], "b c": inner[1]},
                "required": ["a", "b c"],
                "additionalProperties": False,
            },
        ]
    )


def wanted(random: Random, number: int) -> tuple[dict[str, Any], Callable[[str], None]]:
    """Return the fields that ask for some form, and a check of a whole answer. Forms take turns."""
    schema = random_schema(random)

    def is_of_schema(text: str) -> None:
        jsonschema.validate(json.loads(text), schema)

    def is_phone(text: str) -> None:
        assert re.fullmatch(r"\d{3}-\d{4}", text), text

    def is_sum(text: str) -> None:
        assert re.fullmatch(r"(\d\+){2,3}\d", text), text

    named = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    gbnf = 'root ::= term term term? [0-9]\nterm ::= [0-9] "+"'
    forms: list[tuple[dict[str, Any], Callable[[str], None]]] = [
        ({"response_format": named}, is_of_schema),
        ({"guided_json": schema}, is_of_schema),
        ({"structured_outputs": {"json": schema, "disable_any_whitespace": True}}, is_of_schema),
        ({"structured_outputs": {"regex": r"\d{3}-\d{4}"}}, is_phone),
        ({"guided_grammar": gbnf}, is_sum),
    ]
    return forms[number % len(forms)]


async def ask(client: openai.AsyncOpenAI, body: dict[str, Any], stream: bool) -> list[tuple[str, str | None]]:
    """Return the text and the finish reason of each choice, from a stream or as a whole."""
    texts, reasons = [""] * body.get("n", 1), [None] * body.get("n", 1)
    answer: Any = await client.completions.create(**body, stream=stream)
    chunks = [chunk async for chunk in answer] if stream else [answer]
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        if body.get("logprobs"):
            assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
            assert all(value <= 0 for value in choice.logprobs.token_logprobs)
    return list(zip(texts, reasons, strict=True))


def body_of(world: Any, random: Random, number: int, fields: dict[str, Any]) -> dict[str, Any]:
    """Return a body: every adapter, mixtures and the base in turns, and most options by chance."""
    names = [None, *(adapter.name for adapter in world.adapters[:4])]
    name, extra = names[number % len(names)], dict(fields)
    body = {"model": name or world.model.name, "prompt": [7, 8, 9, *random.choices(range(20, 250), k=12)]}
    if number % 7 == 3:
        body["model"] = "default"
        members = zip(world.adapters[:2], (0.7, -0.3), strict=True)
        extra["adapters"] = [{"name": adapter.name, "weight": weight} for adapter, weight in members]
    body |= {"max_tokens": 150, "temperature": float(number % 4 != 0), "seed": number, "extra_body": extra}
    return body | random.choice([{}, {"n": 3}, {"logprobs": 2}, {"presence_penalty": 0.5}])


@pytest.mark.parametrize("seed", [1])
async def test_every_whole_answer_is_of_its_form(world: Any, serve: Callable[..., Any], seed: int) -> None:
    server = serve("--kv-cache-tokens", "288", "--max-running", "12", "--max-model-len", "256")
    for adapter in world.adapters[:4]:
        assert server.upload(adapter.name, adapter).status_code == 201
    random = Random(seed)
    forms = [wanted(random, number) for number in range(20)]
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0, timeout=240) as client:
        free = {"model": world.model.name, "prompt": NEIGHBOUR, "max_tokens": 40, "temperature": 0.0}
        [alone] = await ask(client, free, stream=False)
        asked = [
            ask(client, body_of(world, random, number, fields), stream=number % 2 == 1)
            for number, (fields, _) in enumerate(forms)
        ]
        *held, first, second = await asyncio.gather(*asked, ask(client, free, True), ask(client, free, False))
        assert first == second == [alone]
        whole = 0
        for (_, check), choices in zip(forms, held, strict=True):
            for text, reason in choices:
                assert reason in ("stop", "length"), (text, reason)
                if reason == "stop":
                    check(text)
                    whole += 1
        assert whole > 0.8 * sum(map(len, held))
        [[cut, reason]] = await ask(client, {**free, "stop": "-", "extra_body": {"regex": r"\d{3}-\d{4}"}}, False)
        assert (re.fullmatch(r"\d{3}", cut) is not None, reason) == (True, "stop")
    assert server.metric("peftserve_preemptions_total") > 0
