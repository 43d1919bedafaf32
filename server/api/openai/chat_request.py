"""The body of a chat: its messages, and the request that has them."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from ..http.errors import bad_request
from .model_request import Body, faulty, refuse_unsupported
from .requests import MAX_LOGPROBS, NEUTRAL_VALUES, GenerationRequest
from .tools import ToolFields

MAX_MESSAGES = 4096
MAX_CALLS = 128


class TextPart(Body):
    """A part of a message's content. Only text is served."""

    type: Literal["text"]
    text: str


class RefusalPart(Body):
    """An assistant's refusal, which is its text."""

    type: Literal["refusal"]
    refusal: str


class PastFunction(Body):
    """A function that was called. arguments: JSON as a text."""

    name: str = Field(min_length=1, max_length=256)
    arguments: str = ""

    @field_validator("arguments", mode="before", json_schema_input_type=str | dict[str, Any])
    @classmethod
    def _as_text(cls, arguments: Any) -> Any:
        return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments


class PastCall(Body):
    """A call that an assistant's message has made."""

    id: str = Field(default="", max_length=256)
    type: Literal["function"] = "function"
    function: PastFunction


class Message(Body):
    """One message of a chat. Fields beyond these reach the chat template as they are."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | None = Field(default=None, description="A text, or parts that are joined by line breaks.")
    tool_calls: list[PastCall] | None = Field(
        default=None, max_length=MAX_CALLS, description="Calls that an assistant's message has made."
    )
    tool_call_id: str | None = Field(
        default=None, max_length=256, description="The call whose result a message of the role `tool` is."
    )
    function_call: PastFunction | None = Field(default=None, description="The older form of `tool_calls`.")

    @field_validator("content", mode="before", json_schema_input_type=str | list[TextPart] | None)
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        return "\n".join(map(_text_of, content))

    @model_validator(mode="after")
    def _fields_agree(self) -> "Message":
        calls = self.tool_calls or self.function_call
        if calls and self.role != "assistant":
            raise ValueError(f"a message of the role {self.role!r} cannot have made calls; only an assistant's can")
        if self.content is None and self.role != "assistant":  # whose thoughts may have used up all its tokens
            raise ValueError("content is missing")
        return self


CHAT_NEUTRAL_VALUES = {"echo": (None, False), "return_prompt_text": (None, False)}
"""Fields that chats do not serve to the values that change nothing."""


def _text_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "refusal":
        return RefusalPart.model_validate(part).refusal
    if kind != "text":
        shown = f", not {kind[:40]!r}" if isinstance(kind, str) else ""
        raise ValueError(f"only parts of type 'text' are served{shown}: images, audio and video are not read here")
    return TextPart.model_validate(part).text


class ChatRequest(ToolFields, GenerationRequest):
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

    reasoning_effort: str | None = Field(
        default=None, max_length=64, description="How much to think, where the model's chat template knows it."
    )
    include_reasoning: bool = Field(default=True, description="Show what a reasoning model thinks.")

    @classmethod
    def _refuse_what_is_not_served(cls, data: dict[str, Any]) -> None:
        refuse_unsupported({name: value for name, value in data.items() if name not in _SERVED}, NEUTRAL_VALUES)
        refuse_unsupported(data, CHAT_NEUTRAL_VALUES)

    @model_validator(mode="after")
    def _chat_fields_agree(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise faulty("top_logprobs needs logprobs to be true", "top_logprobs")
        if self.continue_final_message and self.add_generation_prompt:
            raise faulty("continue_final_message needs add_generation_prompt to be false", "continue_final_message")
        return self

    def template_arguments(self, reads: Callable[[str], bool]) -> dict[str, Any]:
        """Return the template's arguments that stand in fields of their own. Raises ApiError for one that it lacks."""
        if self.reasoning_effort in (None, "none") and not reads("reasoning_effort"):
            return {}
        if not reads("reasoning_effort"):
            raise bad_request(
                "reasoning_effort is not supported by this model's chat template; leave it out", "reasoning_effort"
            )
        return {"reasoning_effort": self.reasoning_effort} if self.reasoning_effort is not None else {}

    @property
    def limit(self) -> int | None:
        """Most tokens to generate, None for what fits. The newer name wins."""
        return self.max_completion_tokens or self.max_tokens


_SERVED = frozenset((*ToolFields.model_fields, "reasoning_effort"))
"""Fields that a chat serves and other requests do not."""
