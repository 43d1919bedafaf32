"""langchain-openai."""

from typing import Literal

import checks
import openai
from checks import ADAPTER, BASE, PROMPT, TOOL, expect, expect_weather
from langchain_core.messages import ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

TO = {"base_url": checks.BASE_URL, "api_key": SecretStr(checks.KEY), "max_retries": 0}


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Rome"]
    celsius: bool


def model(name: str = BASE, **settings: object) -> ChatOpenAI:
    return ChatOpenAI(model=name, max_tokens=120, **settings, **TO)


def chat() -> None:
    expect(model().invoke(PROMPT).usage_metadata["output_tokens"], "no usage")


def stream() -> None:
    expect(list(model(stream_usage=True).stream(PROMPT))[-1].usage_metadata or True, "no chunks")


def completions() -> None:
    expect(isinstance(OpenAI(model=BASE, max_tokens=4, **TO).invoke(PROMPT), str), "no text")


def adapters() -> None:
    plain, adapted = (model(name, temperature=0).invoke(PROMPT).content for name in (BASE, ADAPTER))
    expect(plain != adapted, "the adapter changes nothing")


def logprobs() -> None:
    answer = model(logprobs=True, top_logprobs=2).invoke(PROMPT)
    expect(len(answer.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2, "top_logprobs")


def tools() -> None:
    bound = model().bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
    asked = bound.invoke(PROMPT)
    expect_weather(asked.tool_calls[0]["args"])
    told = ToolMessage("warm", tool_call_id=asked.tool_calls[0]["id"])
    expect(model().bind_tools([TOOL]).invoke([("user", PROMPT), asked, told]).response_metadata, "no answer")


def structured() -> None:
    for method in ("json_schema", "function_calling"):
        found = model().with_structured_output(Weather, method=method).invoke(PROMPT)
        expect(isinstance(found, Weather), method)


def embeddings() -> None:
    embedder = OpenAIEmbeddings(model=BASE, check_embedding_ctx_length=False, **TO)
    expect(len(embedder.embed_documents([PROMPT, "a"])) == 2, "not two")


def responses() -> None:
    expect(model(use_responses_api=True).invoke(PROMPT).response_metadata, "no answer")


def errors() -> None:
    try:
        model("nobody").invoke(PROMPT)
    except openai.NotFoundError:
        return
    raise AssertionError("an unknown model answers")


if __name__ == "__main__":
    checks.run(chat, stream, completions, adapters, logprobs, tools, structured, embeddings, responses, errors)
