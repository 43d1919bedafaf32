"""A chat's messages as a model's template takes them: roles and calls by the names that templates know."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..assistant.tool_prompts import adapt, needs_traits
from ..text.chat_template import ChatTemplate
from .chat_request import Message

Chat = list[dict[str, Any]]
Tools = Sequence[Mapping[str, Any]]


def as_template_sees(
    template: ChatTemplate, messages: Sequence[Message], tools: Tools | None
) -> tuple[Chat, Tools | None]:
    """Return messages and definitions of tools in the words that the template knows."""
    chat = _with_newer_calls([_fields(message) for message in messages])
    if not needs_traits(chat, tools):
        return chat, None
    return adapt(chat, tools or None, template.traits())


def last_words(messages: Sequence[Message]) -> str:
    """Return the user's last message; where there is none, the last of all."""
    users = [message for message in messages if message.role == "user"]
    return (users or messages)[-1].content or ""


def _fields(message: Message) -> dict[str, Any]:
    """Return a message's fields.

    OpenAI calls the system's role `developer` since its o1; templates know the older name.
    """
    fields = message.model_dump(exclude_none=True)
    if not fields.get("tool_calls"):
        fields.pop("tool_calls", None)
    fields.setdefault("content", "")
    return {**fields, "role": "system"} if message.role == "developer" else fields


def _with_newer_calls(chat: Chat) -> Chat:
    """Write `function_call` and the role `function` in the newer form, and give each call an id."""
    last = ""
    for place, message in enumerate(chat):
        if "function_call" in message:
            call = {"id": "", "type": "function", "function": message.pop("function_call")}
            message.setdefault("tool_calls", [call])
        for number, call in enumerate(message.get("tool_calls", ())):
            call["id"] = last = call["id"] or f"call_{place}_{number}"
        if message["role"] == "function":
            message["role"] = "tool"
        if message["role"] == "tool":
            message.setdefault("tool_call_id", last)
    return chat
