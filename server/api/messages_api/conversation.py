"""From Anthropic's messages to those of a chat that say the same."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
from pydantic import BaseModel

from ..http.errors import bad_request
from ..openai.model_request import Body
from ..openai.places import validate_at
from .blocks import (
    Content,
    Json,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    not_served,
    texts_of,
)


class InputMessage(Body):
    """One message."""

    role: Literal["user", "assistant"]
    content: Content


class Conversation:
    """The messages of a chat, as messages of this API add to them. places: where in the body each one began.

    Messages of one role that follow each other are one, as Anthropic has it.
    """

    def __init__(self) -> None:
        self._messages: list[Json] = []
        self.places: list[str] = []
        self._calls: set[str] = set()

    @property
    def messages(self) -> list[Json]:
        """The messages; an assistant's that says nothing has no content where it calls, else an empty one."""
        return [{"content": None if "tool_calls" in message else "", **message} for message in self._messages]

    @property
    def is_open(self) -> bool:
        """Whether the last message is the assistant's, to be gone on with."""
        last = self._messages[-1] if self._messages else {}  # of blocks, of which there may be none
        return last.get("role") == "assistant" and "tool_calls" not in last

    def instruct(self, system: str | list[Json]) -> None:
        if text := texts_of(system, "system"):
            self.say("system", text, "system")

    def add(self, message: InputMessage, place: str) -> None:
        """Add a message. Raises ApiError, pydantic's ValidationError for a block that is not served."""
        if isinstance(message.content, str):
            self.say(message.role, message.content, f"{place}.content")
            return
        kinds = BLOCKS[message.role]
        for index, block in enumerate(message.content):
            inside = f"{place}.content.{index}"
            kind = block.get("type")
            if not isinstance(kind, str) or kind not in kinds:
                raise not_served(block, inside, *kinds)
            model, take = kinds[kind]
            take(self, message.role, validate_at(model, block, tuple(inside.split("."))), inside)

    def say(self, role: str, text: str, place: str) -> None:
        message = self._last(role, place)
        message["content"] = f"{message['content']}\n{text}" if "content" in message else text

    def think(self, thinking: str, place: str) -> None:
        message = self._last("assistant", place)
        message["reasoning_content"] = f"{message.get('reasoning_content', '')}{thinking}"

    def call(self, block: ToolUseBlock, place: str) -> None:
        function = {"name": block.name, "arguments": msgspec.json.encode(block.input).decode()}
        calls = self._last("assistant", place).setdefault("tool_calls", [])
        calls.append({"id": block.id, "type": "function", "function": function})
        self._calls.add(block.id)

    def give(self, block: ToolResultBlock, place: str) -> None:
        if block.tool_use_id not in self._calls:
            message = f"{place}: no tool_use block before this one has the id {block.tool_use_id[:64]!r}."
            raise bad_request(message, f"{place}.tool_use_id")
        content = texts_of(block.content, f"{place}.content")
        self._begin({"role": "tool", "tool_call_id": block.tool_use_id, "content": content}, place)

    def _last(self, role: str, place: str) -> Json:
        """Return the message of this role to add to: the last one, if that is of it."""
        if self._messages and self._messages[-1]["role"] == role:
            return self._messages[-1]
        return self._begin({"role": role}, place)

    def _begin(self, message: Json, place: str) -> Json:
        self._messages.append(message)
        self.places.append(place)
        return message


def _take_text(chat: Conversation, role: str, block: TextBlock, place: str) -> None:
    chat.say(role, block.text, place)


def _take_result(chat: Conversation, role: str, block: ToolResultBlock, place: str) -> None:
    chat.give(block, place)


def _take_call(chat: Conversation, role: str, block: ToolUseBlock, place: str) -> None:
    chat.call(block, place)


def _take_thinking(chat: Conversation, role: str, block: ThinkingBlock, place: str) -> None:
    chat.think(block.thinking, place)


def _take_nothing(chat: Conversation, role: str, block: RedactedThinkingBlock, place: str) -> None:
    """Leave out what cannot be read."""


Take = Callable[[Conversation, str, Any, str], None]

BLOCKS: Mapping[str, Mapping[str, tuple[type[BaseModel], Take]]] = {
    "user": {"text": (TextBlock, _take_text), "tool_result": (ToolResultBlock, _take_result)},
    "assistant": {
        "text": (TextBlock, _take_text),
        "tool_use": (ToolUseBlock, _take_call),
        "thinking": (ThinkingBlock, _take_thinking),
        "redacted_thinking": (RedactedThinkingBlock, _take_nothing),
    },
}
"""Role to the blocks that its messages may have."""
