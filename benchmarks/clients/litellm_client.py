"""litellm, which speaks to any server of OpenAI's kind as `openai/NAME`, and translates Anthropic's messages."""

import asyncio

import checks
import litellm
from checks import ADAPTER, BASE, MESSAGES, PROMPT, TOOL, WEATHER, expect, expect_weather

litellm.suppress_debug_info = True
TO = {"api_base": checks.BASE_URL, "api_key": checks.KEY, "num_retries": 0}
MODEL = f"openai/{BASE}"


def chat() -> None:
    answer = litellm.completion(model=MODEL, messages=MESSAGES, max_tokens=8, **TO)
    expect(answer.usage.completion_tokens, "no usage")


def stream() -> None:
    chunks = list(litellm.completion(model=MODEL, messages=MESSAGES, max_tokens=8, stream=True, **TO))
    expect(chunks[-1].choices[0].finish_reason or len(chunks) > 1, "no end")


def completions() -> None:
    answer = litellm.text_completion(model=f"text-completion-openai/{BASE}", prompt=PROMPT, max_tokens=4, **TO)
    expect(answer.choices, "no choices")


def adapters() -> None:
    texts = [
        litellm.completion(model=f"openai/{name}", messages=MESSAGES, max_tokens=12, temperature=0, **TO)
        .choices[0]
        .message.content
        for name in (BASE, ADAPTER)
    ]
    expect(texts[0] != texts[1], "the adapter changes nothing")


def logprobs() -> None:
    answer = litellm.completion(model=MODEL, messages=MESSAGES, max_tokens=3, logprobs=True, top_logprobs=2, **TO)
    expect(len(answer.choices[0].logprobs.content[0].top_logprobs) == 2, "top_logprobs")


def tools() -> None:
    asked = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
    answer = litellm.completion(model=MODEL, messages=MESSAGES, **asked, **TO)
    expect_weather(answer.choices[0].message.tool_calls[0].function.arguments)


def structured() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    answer = litellm.completion(model=MODEL, messages=MESSAGES, response_format=form, max_tokens=200, **TO)
    expect_weather(answer.choices[0].message.content)


def embeddings() -> None:
    answer = litellm.embedding(model=MODEL, input=[PROMPT, "a"], **TO)
    expect(len(answer.data) == 2, "not two")


def responses() -> None:
    answer = litellm.responses(model=MODEL, input=PROMPT, max_output_tokens=16, **TO)
    expect(answer.output, "no output")


def messages() -> None:
    """Ask by Anthropic's body, which litellm translates itself."""
    asked = litellm.anthropic.messages.acreate(model=MODEL, messages=MESSAGES, max_tokens=16, **TO)
    expect(asyncio.run(asked)["content"], "no content")


def errors() -> None:
    try:
        litellm.completion(model="openai/nobody", messages=MESSAGES, **TO)
    except litellm.NotFoundError:
        return
    raise AssertionError("an unknown model answers")


if __name__ == "__main__":
    checks.run(
        chat, stream, completions, adapters, logprobs, tools, structured, embeddings, responses, messages, errors
    )
