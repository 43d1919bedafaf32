"""pydantic-ai: agents with tools and typed answers."""

from typing import Literal

import checks
from checks import ADAPTER, BASE, PROMPT, expect
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

PROVIDER = OpenAIProvider(base_url=checks.BASE_URL, api_key=checks.KEY)
SHORT = {"max_tokens": 200, "temperature": 0.0}


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Rome"]
    celsius: bool


def model(name: str = BASE) -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=PROVIDER)


def chat() -> None:
    expect(Agent(model(), model_settings=SHORT).run_sync(PROMPT).usage, "no usage")


def stream() -> None:
    expect(Agent(model(), model_settings=SHORT).run_stream_sync(PROMPT).get_output() is not None, "no output")


def adapters() -> None:
    plain, adapted = (Agent(model(name), model_settings=SHORT).run_sync(PROMPT).output for name in (BASE, ADAPTER))
    expect(plain != adapted, "the adapter changes nothing")


def tools() -> None:
    agent = Agent(model(), output_type=ToolOutput(Weather), model_settings=SHORT, retries=0)
    expect(isinstance(agent.run_sync(PROMPT).output, Weather), "not parsed")


def structured() -> None:
    agent = Agent(model(), output_type=NativeOutput(Weather), model_settings=SHORT, retries=0)
    expect(isinstance(agent.run_sync(PROMPT).output, Weather), "not parsed")


def responses() -> None:
    agent = Agent(OpenAIResponsesModel(BASE, provider=PROVIDER), model_settings=SHORT)
    expect(agent.run_sync(PROMPT).output is not None, "no output")


def errors() -> None:
    try:
        Agent(model("nobody")).run_sync(PROMPT)
    except ModelHTTPError as error:
        expect(error.status_code == 404, "another status")
    else:
        raise AssertionError("an unknown model answers")


if __name__ == "__main__":
    checks.run(chat, stream, adapters, tools, structured, responses, errors)
