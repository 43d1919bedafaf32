"""The body of a request for a message: Anthropic's fields; any other is a chat's, as `translation.py` hands it on."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from ..openai.chat_request import MAX_MESSAGES
from ..openai.model_request import Body
from ..openai.refused import OF_CHATS, Refused, refuse
from ..openai.requests import MAX_STOPS, Stop
from .blocks import Json, TextContent
from .conversation import InputMessage

MAX_TOOLS = 128

REFUSED: Refused = {
    **OF_CHATS,
    "max_completion_tokens": ((None,), "its name is max_tokens here"),
    "stop": ((None, []), "its name is stop_sequences here"),
    "response_format": ((None,), "its name is output_format here"),
    "reasoning_effort": ((None,), "its name is output_config.effort here"),
    "logprobs": ((None, False), "it is not supported here; chats have it"),
    "top_logprobs": ((None, 0), "it is not supported here; chats have it"),
    "container": ((None,), "this server runs no containers"),
    "mcp_servers": ((None, []), "this server calls no others"),
    "context_management": ((None,), "it is not supported by this server; leave it out"),
}


class Tool(Body):
    """A tool of the client's that the model may call."""

    type: Literal["custom"] | None = Field(default=None, description="Anthropic's own tools are not served.")
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    input_schema: Json = Field(description="A JSON schema of its input.")


class ToolChoice(Body):
    """How the model chooses a tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, max_length=64, description="Only for `tool`.")
    disable_parallel_tool_use: bool = Field(default=False, description="At most one call in an answer.")

    @model_validator(mode="after")
    def _name_is_there(self) -> "ToolChoice":
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("name is for the type 'tool', and needed there")
        return self


class Thinking(Body):
    """Whether a reasoning model thinks first, where its template has `enable_thinking`."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(default=None, ge=1, description="Not enforced; `max_tokens` is.")


class OutputFormat(Body):
    """The form of the answer's text."""

    type: Literal["json_schema"]
    schema_: Json = Field(alias="schema")


class OutputConfig(Body):
    """Options of the output."""

    effort: str | None = Field(default=None, max_length=64, description="For templates that know it.")
    format: OutputFormat | None = None


class Metadata(Body):
    """Facts about the request."""

    user_id: str | None = Field(default=None, max_length=1024, description="An id of the end user.")


class CountRequest(Body):
    """A conversation whose tokens are counted."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str | None = Field(
        default=None, max_length=512, description="The base's id, an adapter, a version, a route, or `default`."
    )
    messages: list[InputMessage] = Field(min_length=1, max_length=MAX_MESSAGES, description="The conversation so far.")
    system: TextContent | None = Field(default=None, description="Instructions: a text, or blocks of text.")
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_format: OutputFormat | None = Field(default=None, description="The older name of `output_config.format`.")
    output_config: OutputConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_served(cls, data: Any) -> Any:
        if isinstance(data, dict):
            refuse(data, REFUSED)
        return data


class MessagesRequest(CountRequest):
    """A conversation to go on with. Fields beyond Anthropic's are those of chats: `adapters`, `seed`, `min_p`, …"""

    max_tokens: int = Field(ge=1, lt=1 << 31, description="Most tokens of the answer.")
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = Field(
        default=None, description="Texts that end the answer, which does not show them."
    )
    temperature: float | None = Field(default=None, description="0 is greedy. Default: 1.")
    top_p: float | None = Field(default=None, description="As in chats.")
    top_k: int | None = Field(default=None, description="As in chats.")
    metadata: Metadata | None = None
    service_tier: str | None = Field(default=None, max_length=64, description="There is one: `standard`.")
    stream: bool | None = Field(default=None, description="Send events while the answer is made.")
