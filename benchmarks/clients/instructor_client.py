"""instructor, in each of its modes for servers of OpenAI's kind."""

from typing import Literal

import checks
import instructor
import openai
from checks import BASE, MESSAGES, expect
from pydantic import BaseModel, ConfigDict

plain = openai.OpenAI(base_url=checks.BASE_URL, api_key=checks.KEY, max_retries=0)


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")  # or a model at random would add what it likes

    city: Literal["Oslo", "Rome"]
    celsius: bool


def ask(mode: instructor.Mode) -> None:
    client = instructor.from_openai(plain, mode=mode)
    found = client.chat.completions.create(
        model=BASE, messages=MESSAGES, response_model=Weather, max_retries=0, max_tokens=200
    )
    expect(isinstance(found, Weather), "not parsed")


def tools() -> None:
    ask(instructor.Mode.TOOLS)
    ask(instructor.Mode.TOOLS_STRICT)


def structured() -> None:
    ask(instructor.Mode.JSON_SCHEMA)


if __name__ == "__main__":
    checks.run(tools, structured)
