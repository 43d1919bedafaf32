"""The body of a request for a response: OpenAI's fields; any other is a chat's, as `translation.py` hands it on.

What cannot be served without a store, or is run by OpenAI itself, is refused by name; so are a chat's fields that have
another name here.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from ..openai.chat_request import MAX_MESSAGES
from ..openai.model_request import Body
from ..openai.refused import OF_CHATS, Refused, refuse
from ..openai.requests import MAX_LOGPROBS
from .items import InputItem
from .tools import FunctionTool, read_tools

LOGPROBS = "message.output_text.logprobs"
MAX_METADATA = 16

Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Length = Annotated[int, Field(ge=1, lt=1 << 31)]

STATELESS = "this server keeps no responses; send all of the conversation as input"
REFUSED: Refused = {
    **OF_CHATS,
    "store": ((None, False), "this server keeps no responses; leave it out or set it to false"),
    "previous_response_id": ((None,), STATELESS),
    "conversation": ((None,), STATELESS),
    "prompt": ((None,), "this server keeps no prompts; send instructions and input"),
    "background": ((None, False), "this server keeps no responses; wait for the answer or stream it"),
    "context_management": ((None, []), "it is not supported; truncation may be 'auto'"),
    "moderation": ((None,), "it is not supported by this server; leave it out"),
    "messages": ((None,), "send them as input"),
    "max_tokens": ((None,), "its name is max_output_tokens here"),
    "max_completion_tokens": ((None,), "its name is max_output_tokens here"),
    "response_format": ((None, {"type": "text"}), "its name is text.format here"),
    "reasoning_effort": ((None,), "its name is reasoning.effort here"),
    "logprobs": ((None, False), f'ask for them by include: ["{LOGPROBS}"]'),
}


class TextFormat(Body):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = Field(default=None, max_length=64, description="The schema's name.")
    schema_: dict[str, Any] | None = Field(default=None, alias="schema", description="Only for `json_schema`.")
    description: str | None = Field(default=None, description="What the form is for.")
    strict: bool | None = Field(default=None, description="Whether the answer must be valid.")

    @model_validator(mode="after")
    def _schema_is_there(self) -> "TextFormat":
        if self.type == "json_schema" and (self.schema_ is None or not self.name):
            raise ValueError("a format of type 'json_schema' needs name and schema")
        return self


class TextConfig(Body):
    """Options of the answer's text."""

    format: TextFormat | None = Field(default=None, description="Default: plain text.")
    verbosity: Literal["medium"] | None = Field(default=None, description="No other is served.")


class Reasoning(Body):
    """Options of reasoning models."""

    effort: str | None = Field(default=None, max_length=64, description="For templates that know it.")
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        default=None, description="Give the reasoning, as the model wrote it, as the item's summary."
    )
    generate_summary: Literal["auto", "concise", "detailed"] | None = Field(
        default=None, description="The older name of `summary`."
    )


class ResponsesRequest(Body):
    """A request for a response. Fields beyond OpenAI's are those of chats: `adapters`, `top_k`, `seed`, `stop`, …"""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str | None = Field(
        default=None, max_length=512, description="The base's id, an adapter, a version, a route, or `default`."
    )
    input: str | list[Any] = Field(description="A text, or the items of the conversation so far.")
    instructions: str | None = Field(default=None, description="A system message before all of the input.")
    max_output_tokens: Length | None = Field(
        default=None, description="Most tokens of the answer, reasoning included. Default: what fits the context."
    )
    temperature: float | None = Field(default=None, description="0 is greedy. Default: 1.")
    top_p: float | None = Field(default=None, description="As in chats.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_LOGPROBS, description="Likeliest tokens to report for each place of the text."
    )
    include: list[Include] | None = Field(
        default=None, max_length=32, description=f"`{LOGPROBS}` gives logprobs; the others have nothing to add here."
    )
    tools: list[FunctionTool] = Field(default_factory=list, description="The functions that the model may call.")
    tool_choice: str | dict[str, Any] | None = Field(
        default=None,
        description='`auto`, `none`, `required`, `{"type": "function", "name": …}`, or `allowed_tools`.',
    )
    parallel_tool_calls: bool | None = Field(default=None, description="Whether one answer may have several calls.")
    max_tool_calls: int | None = Field(default=None, ge=1, description="Of built-in tools, of which there are none.")
    text: TextConfig | None = Field(default=None, description="The form of the answer's text.")
    reasoning: Reasoning | None = Field(default=None, description="Options of reasoning models.")
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=MAX_METADATA, description="Comes back with the answer."
    )
    user: str | None = Field(default=None, max_length=1024, description="An id of the end user.")
    safety_identifier: str | None = Field(default=None, max_length=1024, description="The newer name of `user`.")
    prompt_cache_key: str | None = Field(default=None, max_length=1024, description="Comes back with the answer.")
    truncation: Literal["auto", "disabled"] | None = Field(
        default=None, description="`auto` leaves out the oldest turns of a conversation that does not fit."
    )
    service_tier: str | None = Field(default=None, max_length=64, description="There is one: `default`.")
    stream: bool | None = Field(default=None, description="Send events while the answer is made.")
    stream_options: dict[str, Any] | None = Field(default=None, description="Has nothing to add here.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_served(cls, data: Any) -> Any:
        if isinstance(data, dict):
            refuse(data, REFUSED)
        return data

    @field_validator("input", mode="plain", json_schema_input_type=str | list[InputItem])
    @classmethod
    def _text_or_items(cls, value: Any) -> Any:
        if not isinstance(value, str | list) or not value:
            raise ValueError("must be a text or a list of items, and not empty")
        if len(value) > MAX_MESSAGES and not isinstance(value, str):
            raise ValueError(f"at most {MAX_MESSAGES} items")
        return value

    @field_validator("tools", mode="plain", json_schema_input_type=list[FunctionTool] | None)
    @classmethod
    def _functions(cls, value: Any) -> list[FunctionTool]:
        return read_tools(value)

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or LOGPROBS in (self.include or ())

    @property
    def summarised(self) -> bool:
        """Whether reasoning is given as the summary of its item."""
        return self.reasoning is not None and bool(self.reasoning.summary or self.reasoning.generate_summary)
