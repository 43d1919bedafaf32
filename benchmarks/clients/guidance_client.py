"""guidance, with its class for OpenAI's API."""

import checks
import guidance
from checks import BASE, PROMPT, WEATHER, expect, expect_weather
from guidance import gen, user
from guidance.models import OpenAI


def model() -> OpenAI:
    return OpenAI(BASE, api_key=checks.KEY, base_url=checks.BASE_URL, echo=False)


def chat() -> None:
    with user():
        asked = model() + PROMPT
    with guidance.assistant():
        expect((asked + gen("said", max_tokens=8))["said"] is not None, "no text")


def structured() -> None:
    with user():
        asked = model() + PROMPT
    with guidance.assistant():
        expect_weather((asked + guidance.json("said", schema=WEATHER, max_tokens=200))["said"])


if __name__ == "__main__":
    checks.run(chat, structured)
