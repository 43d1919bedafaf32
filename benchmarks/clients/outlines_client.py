"""outlines, over a server of OpenAI's kind and over one of vLLM's, whose own fields it sends."""

from typing import Literal

import checks
import openai
import outlines
from checks import BASE, PROMPT, expect, expect_weather
from outlines.types import CFG, Regex
from pydantic import BaseModel, ConfigDict

client = openai.OpenAI(base_url=checks.BASE_URL, api_key=checks.KEY, max_retries=0)
of_openai = outlines.from_openai(client, BASE)
of_vllm = outlines.from_vllm(client, BASE)


class Weather(BaseModel):
    model_config = ConfigDict(extra="forbid")  # or a model at random would add what it likes

    city: Literal["Oslo", "Rome"]
    celsius: bool


def chat() -> None:
    expect(isinstance(of_openai(PROMPT, max_tokens=8), str), "no text")


def stream() -> None:
    expect(list(of_vllm.stream(PROMPT, max_tokens=8)), "no pieces")


def structured() -> None:
    expect_weather(of_openai(PROMPT, Weather, max_tokens=200))
    expect_weather(of_vllm(PROMPT, Weather, max_tokens=200))
    expect(of_vllm(PROMPT, Literal["red", "green"], max_tokens=20) in ("red", "green"), "not a choice")
    expect(of_vllm(PROMPT, Regex("[0-9]{3}"), max_tokens=20).isdigit(), "not by the expression")
    expect(of_vllm(PROMPT, CFG('start: "a" "b"'), max_tokens=20) == "ab", "not by the grammar")


if __name__ == "__main__":
    checks.run(chat, stream, structured)
