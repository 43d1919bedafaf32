"""The body of a chat: its messages, and the request that has them."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from .requests import MAX_LOGPROBS, Body, GenerationRequest

MAX_MESSAGES = 4096


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    """Fields beyond these reach the chat template as they are."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
            raise ValueError("only parts of type 'text' are served")
        return "\n".join(TextPart.model_validate(part).text for part in content)

    @model_validator(mode="after")
    def _no_tool_calls(self) -> "Message":
        if (self.model_extra or {}).get("tool_calls") or (self.model_extra or {}).get("function_call"):
            raise ValueError("tool calls are not served")
        if self.content is None:
            raise ValueError("content is missing")
        return self


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1, lt=1 << 31)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=1 << 31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, max_length=64)

    @model_validator(mode="after")
    def _chat_fields_agree(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message needs add_generation_prompt to be false")
        return self

    @property
    def limit(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens
