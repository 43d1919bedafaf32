"""OpenAI's answers as structs, encoded by msgspec. Fields of vLLM's beyond them are left out unless asked for."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ...wire.messages import FinishReason

PromptLogprobs = list[dict[str, "PromptLogprob"] | None]

Index = Annotated[int, Meta(description="Number of the choice, from 0.")]
Created = Annotated[int, Meta(description="Unix time in seconds.")]
Answered = Annotated[str, Meta(description="What answered: the base's id, or `name@version` of an adapter.")]
Ended = Annotated[FinishReason | None, Meta(description="Why the answer ended; null while it goes on.")]
ChatEnded = Annotated[
    FinishReason | Literal["tool_calls", "function_call"] | None,
    Meta(description="Why the answer ended, `tool_calls` where tools are to be called; null while it goes on."),
]
Stopped = Annotated[
    str | int | None,
    Meta(description="Which of `stop` and `stop_token_ids` ended the answer; else null."),
]
TokenIds = Annotated[list[int] | UnsetType, Meta(description="The answer's tokens, with `return_token_ids`.")]
PromptTokenIds = Annotated[list[int] | UnsetType, Meta(description="The prompt's tokens, with `return_token_ids`.")]
PromptScores = Annotated[
    PromptLogprobs | UnsetType,
    Meta(description="With `prompt_logprobs`, for each token of the prompt: token id to logprob. Null for the first."),
]
Bytes = Annotated[list[int] | None, Meta(description="The token's bytes in UTF-8.")]


class CachedTokens(msgspec.Struct):
    """Details of a prompt's tokens."""

    cached_tokens: Annotated[int, Meta(description="Tokens that the prefix cache had.")]


class Usage(msgspec.Struct):
    """A request's tokens. A prompt counts once, however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class PooledUsage(msgspec.Struct):
    """The tokens of a request for vectors, which generates none."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class PromptLogprob(msgspec.Struct):
    """One token at one place of a prompt."""

    logprob: float
    rank: Annotated[int, Meta(description="Place among all tokens, 1 for the likeliest.")]
    decoded_token: str


class CompletionLogprobs(msgspec.Struct):
    """One entry a token of the choice in each list."""

    text_offset: Annotated[list[int], Meta(description="Where each token begins in the text, in characters.")]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TopLogprob(msgspec.Struct):
    """One of the likeliest tokens at a place."""

    token: str
    logprob: float
    bytes: Bytes


class ChatTokenLogprob(msgspec.Struct):
    """A token of the answer, and the likeliest ones at its place."""

    token: str
    logprob: float
    bytes: Bytes
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """The answer's tokens with their logprobs."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionChoice(msgspec.Struct):
    """One answer, or in a stream the next piece of one."""

    index: Index
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Ended = None
    stop_reason: Stopped = None
    prompt_logprobs: PromptScores = UNSET
    token_ids: TokenIds = UNSET
    prompt_token_ids: PromptTokenIds = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """A whole answer, or an event of a stream; with `include_usage` a stream's last event has no choices."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: Created
    model: Answered
    choices: list[CompletionChoice]
    usage: Annotated[Usage | UnsetType | None, Meta(description="In streams only with `include_usage`.")] = UNSET


class CalledFunction(msgspec.Struct, omit_defaults=True):
    """A function to call, in a stream the next piece. arguments: JSON, as the model wrote it."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCall(msgspec.Struct):
    """A call of a tool."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """The next piece of a call. id, type and name come with the first one."""

    index: Annotated[int, Meta(description="Which of the message's calls, from 0.")]
    function: CalledFunction
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


Reasoning = Annotated[str | UnsetType, Meta(description="What a reasoning model thought before it answered.")]


class ChatMessage(msgspec.Struct):
    """The assistant's message. content: null where there is nothing but calls or reasoning."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: Annotated[CalledFunction | UnsetType, Meta(description="For requests with `functions`.")] = UNSET
    reasoning: Reasoning = UNSET
    reasoning_content: Reasoning = UNSET


class ChatDelta(msgspec.Struct, omit_defaults=True):
    """The next piece of the assistant's message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: CalledFunction | UnsetType = UNSET
    reasoning: Reasoning = UNSET
    reasoning_content: Reasoning = UNSET


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: Index
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatEnded = None
    stop_reason: Stopped = None
    token_ids: TokenIds = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: Created
    model: Answered
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptScores = UNSET
    prompt_token_ids: PromptTokenIds = UNSET


class ChatChunkChoice(msgspec.Struct):
    """The next piece of one answer."""

    index: Index
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatEnded = None
    stop_reason: Stopped = None
    token_ids: TokenIds = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    """An event of a stream; with `include_usage` the last one has no choices."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: Created
    model: Answered
    choices: list[ChatChunkChoice]
    prompt_token_ids: PromptTokenIds = UNSET
    usage: Annotated[Usage | UnsetType | None, Meta(description="Only with `include_usage`.")] = UNSET
