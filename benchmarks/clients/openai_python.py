"""OpenAI's own client for Python."""

from typing import Literal

import checks
import openai
from checks import ADAPTER, BASE, MESSAGES, PROMPT, TOOL, WEATHER, expect, expect_weather
from pydantic import BaseModel

client = openai.OpenAI(base_url=checks.BASE_URL, api_key=checks.KEY, max_retries=0)


class Weather(BaseModel):
    city: Literal["Oslo", "Rome"]
    celsius: bool


def chat() -> None:
    answer = client.chat.completions.create(model=BASE, messages=MESSAGES, max_tokens=8)
    expect(answer.usage.completion_tokens, "no usage")


def stream() -> None:
    asked = {"model": BASE, "messages": MESSAGES, "max_tokens": 8, "stream": True}
    chunks = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
    expect(chunks[-1].usage.completion_tokens, "no usage")
    expect(chunks[-2].choices[0].finish_reason in ("stop", "length"), "no end")


def completions() -> None:
    answer = client.completions.create(model=BASE, prompt=[PROMPT, PROMPT], max_tokens=4, n=2, seed=7)
    expect(len(answer.choices) == 4, "n")


def adapters() -> None:
    plain, adapted = (
        client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=12, temperature=0)
        for name in (BASE, ADAPTER)
    )
    expect(adapted.choices[0].message.content != plain.choices[0].message.content, "the adapter changes nothing")
    expect(ADAPTER in [model.id for model in client.models.list()], "not listed")


def logprobs() -> None:
    answer = client.chat.completions.create(model=BASE, messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2)
    expect(len(answer.choices[0].logprobs.content[0].top_logprobs) == 2, "top_logprobs")


def tools() -> None:
    asked = {"model": BASE, "messages": MESSAGES, "tools": [TOOL], "tool_choice": "required", "max_tokens": 200}
    asked["parallel_tool_calls"] = False  # or a model at random calls until its tokens are used up
    call = client.chat.completions.create(**asked).choices[0].message.tool_calls[0]
    expect_weather(call.function.arguments)
    with client.chat.completions.stream(**asked) as events:
        expect_weather(events.get_final_completion().choices[0].message.tool_calls[0].function.arguments)
    history = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}]
    history.append({"role": "tool", "tool_call_id": call.id, "content": "warm"})
    answer = client.chat.completions.create(model=BASE, messages=history, tools=[TOOL], max_tokens=8)
    expect(answer.choices[0].finish_reason, "no answer behind a tool's")


def structured() -> None:
    parsed = client.chat.completions.parse(model=BASE, messages=MESSAGES, response_format=Weather, max_tokens=200)
    expect(isinstance(parsed.choices[0].message.parsed, Weather), "not parsed")
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    answer = client.chat.completions.create(model=ADAPTER, messages=MESSAGES, response_format=form, max_tokens=200)
    expect_weather(answer.choices[0].message.content)


def embeddings() -> None:
    answer = client.embeddings.create(model=BASE, input=[PROMPT, "a"])
    expect(abs(sum(x * x for x in answer.data[0].embedding) - 1) < 1e-3, "not normalised")


def responses() -> None:
    answer = client.responses.create(model=BASE, input=PROMPT, instructions="Be brief.", max_output_tokens=16)
    expect(answer.status in ("completed", "incomplete"), "no status")
    with client.responses.stream(model=BASE, input=PROMPT, max_output_tokens=16) as events:
        kinds = [event.type for event in events]
    expect(kinds[0] == "response.created" and kinds[-1].startswith("response."), "events")


def errors() -> None:
    try:
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    except openai.NotFoundError as error:
        expect(error.code == "model_not_found", "another code")
    else:
        raise AssertionError("an unknown model answers")


if __name__ == "__main__":
    checks.run(chat, stream, completions, adapters, logprobs, tools, structured, embeddings, responses, errors)
