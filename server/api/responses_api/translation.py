"""From a request for a response to the chat that has the same answer, and to the names that its errors use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..openai.chat_request import ChatRequest
from ..openai.places import told_as, tool_names
from .conversation import SYSTEM, Conversation
from .items import Json
from .request import ResponsesRequest, TextFormat
from .tools import chat_tool, chat_tool_choice

NAMES: Mapping[str, str] = {
    "messages": "input",
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Places in a chat's body to those in ours."""


@dataclass(frozen=True)
class Translated:
    """A chat, as a body. names: its places to those of the client's body."""

    body: Mapping[str, Any]
    names: Mapping[str, str]

    def chat(self, messages: list[Json] | None = None) -> ChatRequest:
        """Return the chat, with these messages or its own. Raises ApiError, pydantic's ValidationError."""
        with told_as(self.names):
            return ChatRequest.model_validate(self.body if messages is None else {**self.body, "messages": messages})

    @property
    def messages(self) -> list[Json]:
        messages: list[Json] = self.body["messages"]
        return messages

    def later(self) -> list[list[Json]]:
        """Return the messages without the oldest turns: none of them, one, two, …; instructions stay."""
        begins = [number for number, message in enumerate(self.messages) if message["role"] == "user"]
        kept = [message for message in self.messages[: begins[0] if begins else 0] if message["role"] in SYSTEM]
        return [self.messages, *(kept + self.messages[begin:] for begin in begins[1:])]


def translate(body: ResponsesRequest) -> Translated:
    """Return the chat that a request asks for. Raises ApiError, pydantic's ValidationError."""
    conversation = _conversation(body)
    fields = {
        **(body.model_extra or {}),
        **_same(body),
        "messages": conversation.messages,
        "max_completion_tokens": body.max_output_tokens,
        "user": body.user or body.safety_identifier,
        **_logprobs(body),
        **_tools(body),
        **_form(body),
    }
    names = {
        **NAMES,
        **{f"messages.{number}": place for number, place in enumerate(conversation.places)},
        **tool_names(len(body.tools), "parameters"),
    }
    return Translated({name: value for name, value in fields.items() if value is not None}, names)


def _conversation(body: ResponsesRequest) -> Conversation:
    conversation = Conversation()
    if body.instructions:
        conversation.say("system", body.instructions, "instructions")
    if isinstance(body.input, str):
        conversation.say("user", body.input, "input")
    else:
        for number, item in enumerate(body.input):
            conversation.add(item, f"input.{number}")
    return conversation


def _same(body: ResponsesRequest) -> Json:
    """Return the fields that have the same name and meaning."""
    return {name: getattr(body, name) for name in ("model", "temperature", "top_p", "stream")}


def _logprobs(body: ResponsesRequest) -> Json:
    return {"logprobs": True, "top_logprobs": body.top_logprobs} if body.wants_logprobs else {}


def _tools(body: ResponsesRequest) -> Json:
    choice = {} if body.tool_choice is None else {"tool_choice": chat_tool_choice(body.tool_choice)}
    if not body.tools:
        return choice
    return {
        **choice,
        "tools": [chat_tool(tool) for tool in body.tools],
        "parallel_tool_calls": body.parallel_tool_calls,
    }


def _form(body: ResponsesRequest) -> Json:
    form = body.text.format if body.text is not None else None
    return {
        "response_format": None if form is None else _response_format(form),
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
    }


def _response_format(form: TextFormat) -> Json:
    if form.type != "json_schema":
        return {"type": form.type}
    schema = form.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
    return {"type": form.type, "json_schema": schema}
