"""OpenAI's answers as structs, encoded by msgspec. Fields of vLLM's beyond them are left out unless asked for."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from ...wire.messages import FinishReason

PromptLogprobs = list[dict[str, "PromptLogprob"] | None]


class CachedTokens(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int
    decoded_token: str


class CompletionLogprobs(msgspec.Struct):
    """text_offset: where each token begins in the choice's text, in characters."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """Of a whole answer and of a chunk of a stream alike; the last chunk of a stream has usage and no choices."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class ChatMessage(msgspec.Struct):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatDelta(msgspec.Struct, omit_defaults=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET


class Model(msgspec.Struct, kw_only=True):
    """parent: the base of an adapter. root: an adapter's digest, or the base itself."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "peftserve"
    root: str
    parent: str | None = None
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


class Card(msgspec.Struct, kw_only=True):
    """One adapter. size: bytes in the device's memory. state: the fastest place that holds it. created: Unix time.

    primitives: primitive to number of places. modules: how many it changes. tensors: of the files, all of them served.
    virtual_tokens, num_tasks: where they are not zero. error: why it cannot be served from the disk, if it cannot.
    """

    id: str
    object: Literal["adapter"] = "adapter"
    name: str
    version: int
    digest: str
    method: str
    rank: int
    size: int
    primitives: dict[str, int]
    modules: int
    tensors: int
    virtual_tokens: int | UnsetType = UNSET
    num_tasks: int | UnsetType = UNSET
    state: Literal["disk", "host", "device"]
    requests_running: int
    created: int
    error: str | UnsetType = UNSET


class CardList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Card]
    has_more: bool = False


class Deleted(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["adapter"] = "adapter"
    deleted: bool = True


class DefaultAdapter(msgspec.Struct):
    adapter: str | None
