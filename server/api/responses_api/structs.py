"""OpenAI's responses as structs, encoded by msgspec: the response, its items, and their parts."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ..openai.responses import ChatTokenLogprob

Status = Literal["in_progress", "completed", "incomplete"]
Scores = list[ChatTokenLogprob]


class OutputText(msgspec.Struct, tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[str] = []
    logprobs: Annotated[Scores, Meta(description="Of its tokens, where they are asked for.")] = []


class ReasoningText(msgspec.Struct, tag="reasoning_text"):
    """What a reasoning model thought."""

    text: str


class SummaryText(msgspec.Struct, tag="summary_text"):
    """The same, where a summary is asked for: it is not shortened."""

    text: str


class OutputMessage(msgspec.Struct, tag="message"):
    """The assistant's message."""

    id: str
    status: Status
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class OutputFunctionCall(msgspec.Struct, tag="function_call"):
    """A call of one of the client's functions."""

    id: str
    status: Status
    call_id: str
    name: str
    arguments: Annotated[str, Meta(description="JSON.")]


class OutputReasoning(msgspec.Struct, tag="reasoning"):
    """What a reasoning model thought before it answered."""

    id: str
    status: Status
    summary: list[SummaryText]
    content: list[ReasoningText] | UnsetType = UNSET


OutputItem = OutputMessage | OutputFunctionCall | OutputReasoning


class ReasoningAsked(msgspec.Struct):
    """What was asked for of the reasoning."""

    effort: str | None = None
    summary: str | None = None


class TextAsked(msgspec.Struct):
    """The form that was asked for, of the answer's text."""

    format: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "text"})


class InputTokensDetails(msgspec.Struct):
    """Details of the input's tokens."""

    cached_tokens: Annotated[int, Meta(description="Tokens that the prefix cache had.")]
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    """Details of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    """A response's tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(msgspec.Struct):
    """What went wrong while the answer was made."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class ResponseObject(msgspec.Struct, kw_only=True):
    """A response, with what the request asked for."""

    id: str
    object: Literal["response"] = "response"
    created_at: Annotated[int, Meta(description="Unix time in seconds.")]
    completed_at: int | None = None
    status: Status | Literal["failed"] = "in_progress"
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    model: Annotated[str, Meta(description="What answers: the base's id, or `name@version` of an adapter.")]
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    prompt_cache_key: str | None = None
    reasoning: ReasoningAsked = msgspec.field(default_factory=ReasoningAsked)
    safety_identifier: str | None = None
    service_tier: Literal["default"] = "default"
    background: Literal[False] = False
    store: Literal[False] = False
    temperature: float = 1.0
    text: TextAsked = msgspec.field(default_factory=TextAsked)
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float = 1.0
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, str] = {}
