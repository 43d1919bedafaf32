"""llama-index, with its class for servers of OpenAI's kind."""

from typing import Literal

import checks
from checks import ADAPTER, BASE, PROMPT, expect
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, ConfigDict

ASKED = [ChatMessage(role="user", content=PROMPT)]


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")  # or a model at random would add what it likes

    city: Literal["Oslo", "Rome"]
    celsius: bool


def model(name: str = BASE) -> OpenAILike:
    return OpenAILike(
        model=name,
        api_base=checks.BASE_URL,
        api_key=checks.KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        max_tokens=200,
        temperature=0,
        max_retries=0,
    )


def chat() -> None:
    expect(model().chat(ASKED).message, "no message")


def stream() -> None:
    expect(list(model().stream_chat(ASKED)), "no pieces")


def adapters() -> None:
    plain, adapted = (model(name).chat(ASKED).message.content for name in (BASE, ADAPTER))
    expect(plain != adapted, "the adapter changes nothing")


def tools() -> None:
    tool = FunctionTool.from_defaults(lambda city, celsius: "warm", name="get_weather", fn_schema=Weather)
    answer = model().chat_with_tools([tool], user_msg=PROMPT, tool_required=True)
    [call] = model().get_tool_calls_from_response(answer)
    Weather.model_validate(call.tool_kwargs)


def structured() -> None:
    expect(isinstance(model().as_structured_llm(Weather).chat(ASKED).raw, Weather), "not parsed")


def embeddings() -> None:
    embedder = OpenAILikeEmbedding(model_name=BASE, api_base=checks.BASE_URL, api_key=checks.KEY, max_retries=0)
    expect(len(embedder.get_text_embedding_batch([PROMPT, "a"])) == 2, "not two")


if __name__ == "__main__":
    checks.run(chat, stream, adapters, tools, structured, embeddings)
