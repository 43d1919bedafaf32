"""inspect-ai, with its provider for servers of OpenAI's kind, `openai-api/NAME/MODEL`."""

import asyncio
import os
from typing import Literal

import checks
from checks import ADAPTER, BASE, PROMPT, WEATHER, expect, expect_weather
from inspect_ai.model import GenerateConfig, ModelOutput, ResponseSchema, get_model
from inspect_ai.tool import ToolInfo, ToolParams
from inspect_ai.util import json_schema
from pydantic import BaseModel

os.environ |= {"PEFTSERVE_BASE_URL": checks.BASE_URL, "PEFTSERVE_API_KEY": checks.KEY}


class Weather(BaseModel):
    city: Literal["Oslo", "Rome"]
    celsius: bool


def ask(name: str = BASE, **settings: object) -> ModelOutput:
    given = {key: settings.pop(key) for key in ("tools", "tool_choice") if key in settings}
    config = GenerateConfig(max_tokens=200, max_retries=0, **{"temperature": 0, **settings})
    return asyncio.run(
        get_model(f"openai-api/peftserve/{name}", memoize=False).generate(PROMPT, config=config, **given)
    )


def chat() -> None:
    expect(ask().usage.output_tokens, "no usage")


def adapters() -> None:
    expect(ask().completion != ask(ADAPTER).completion, "the adapter changes nothing")


def logprobs() -> None:
    expect(len(ask(logprobs=True, top_logprobs=2).choices[0].logprobs.content[0].top_logprobs) == 2, "top_logprobs")


def tools() -> None:
    parameters = ToolParams.model_validate(WEATHER)
    tool = ToolInfo(name="get_weather", description="The weather of a city.", parameters=parameters)
    expect_weather(ask(tools=[tool], tool_choice="any").message.tool_calls[0].arguments)


def structured() -> None:
    schema = ResponseSchema(name="weather", json_schema=json_schema(Weather), strict=True)
    Weather.model_validate_json(ask(response_schema=schema).completion)


if __name__ == "__main__":
    checks.run(chat, adapters, logprobs, tools, structured)
