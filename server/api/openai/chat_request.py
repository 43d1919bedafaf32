"""The body of a chat: its messages, and the request that has them."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from .requests import MAX_LOGPROBS, Body, GenerationRequest

MAX_MESSAGES = 4096


class TextPart(Body):
    """A part of a message's content. Only text is served."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a chat. Fields beyond these reach the chat template as they are."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | None = Field(default=None, description="A text, or parts that are joined by line breaks.")

    @field_validator("content", mode="before", json_schema_input_type=str | list[TextPart] | None)
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
    """A chat to go on with. Fields of OpenAI's that are not served are refused by name; unknown ones are ignored."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, description="The chat so far.")
    max_tokens: int | None = Field(
        default=None, ge=1, lt=1 << 31, description="The older name of `max_completion_tokens`."
    )
    max_completion_tokens: int | None = Field(
        default=None, ge=1, lt=1 << 31, description="Most tokens of the answer. Default: what fits the context."
    )
    logprobs: bool | None = Field(default=None, description="Report each token of the answer with its logprob.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="Likeliest tokens for each place; only with `logprobs`."
    )
    add_generation_prompt: bool = Field(default=True, description="Begin the assistant's next message.")
    continue_final_message: bool = Field(
        default=False, description="Go on with the last message; needs `add_generation_prompt` to be false."
    )
    add_special_tokens: bool = Field(
        default=False, description="Begin with the special tokens that the tokenizer adds, beside the template's own."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, max_length=64, description="Arguments of the model's chat template."
    )

    @model_validator(mode="after")
    def _chat_fields_agree(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message needs add_generation_prompt to be false")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens to generate, None for what fits. The newer name wins."""
        return self.max_completion_tokens or self.max_tokens
