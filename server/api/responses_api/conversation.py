"""From the items of a conversation to the messages of a chat that say the same.

What the assistant did in one go, reasoning, a text and calls, is one message of a chat and several items here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..http.errors import bad_request
from ..openai.model_request import Body
from ..openai.places import validate_at
from .items import FunctionCallItem, FunctionOutputItem, Json, MessageItem, ReasoningItem, text_of

SYSTEM = ("system", "developer")


class Conversation:
    """The messages of a chat, as items add to them. places: where in the body each one began."""

    def __init__(self) -> None:
        self._messages: list[Json] = []
        self.places: list[str] = []
        self._calls: set[str] = set()

    @property
    def messages(self) -> list[Json]:
        """The messages; an assistant's that says nothing has no content where it calls, else an empty one."""
        return [{"content": None if "tool_calls" in message else "", **message} for message in self._messages]

    def add(self, item: Any, place: str) -> None:
        """Add an item. Raises ApiError, pydantic's ValidationError for one that is malformed or not served."""
        model, take = _kind_of(item, place)
        take(self, validate_at(model, item, tuple(place.split("."))), place)

    def say(self, role: str, content: str, place: str) -> None:
        """Add a message. Instructions that begin the chat are one, since many templates take no more."""
        if role in SYSTEM and len(self._messages) == 1 and self._messages[0]["role"] in SYSTEM:
            self._messages[0]["content"] += f"\n\n{content}"
        else:
            self._begin({"role": role, "content": content}, place)

    def answer(self, content: str, place: str) -> None:
        self._turn(place, without=("content", "tool_calls"))["content"] = content

    def think(self, reasoning: str, place: str) -> None:
        if reasoning:
            turn = self._turn(place, without=("reasoning_content", "content", "tool_calls"))
            turn["reasoning_content"] = reasoning

    def call(self, item: FunctionCallItem, place: str) -> None:
        function = {"name": item.name, "arguments": item.arguments}
        calls = self._turn(place).setdefault("tool_calls", [])
        calls.append({"id": item.call_id, "type": "function", "function": function})
        self._calls.add(item.call_id)

    def give(self, call_id: str, output: str, place: str) -> None:
        if call_id not in self._calls:
            message = f"No function_call before this output has the call_id {call_id[:64]!r}; send the call, too."
            raise bad_request(message, f"{place}.call_id")
        self._begin({"role": "tool", "tool_call_id": call_id, "content": output}, place)

    def _turn(self, place: str, without: Sequence[str] = ()) -> Json:
        """Return the assistant's message to add to: the last one, where it has none of `without`."""
        last = self._messages[-1] if self._messages else {}
        if last.get("role") != "assistant" or any(field in last for field in without):
            last = self._begin({"role": "assistant"}, place)
        return last

    def _begin(self, message: Json, place: str) -> Json:
        self._messages.append(message)
        self.places.append(place)
        return message


def _take_message(chat: Conversation, item: MessageItem, place: str) -> None:
    content = text_of(item.content, f"{place}.content")
    if item.role == "assistant":
        chat.answer(content, place)
    else:
        chat.say(item.role, content, place)


def _take_call(chat: Conversation, item: FunctionCallItem, place: str) -> None:
    chat.call(item, place)


def _take_output(chat: Conversation, item: FunctionOutputItem, place: str) -> None:
    chat.give(item.call_id, text_of(item.output, f"{place}.output"), place)


def _take_reasoning(chat: Conversation, item: ReasoningItem, place: str) -> None:
    field = "content" if item.content else "summary"
    chat.think(text_of(getattr(item, field), f"{place}.{field}"), place)


Take = Callable[[Conversation, Any, str], None]

ITEMS: Mapping[str, tuple[type[Body], Take]] = {
    "message": (MessageItem, _take_message),
    "function_call": (FunctionCallItem, _take_call),
    "function_call_output": (FunctionOutputItem, _take_output),
    "reasoning": (ReasoningItem, _take_reasoning),
}


def _kind_of(item: Any, place: str) -> tuple[type[Body], Take]:
    if not isinstance(item, dict):
        raise bad_request(f"{place} must be an item, which is an object.", place)
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "item_reference":
        raise bad_request(f"{place}: this server keeps no items; send the item itself.", f"{place}.type")
    if not isinstance(kind, str) or kind not in ITEMS:
        message = f"{place}: items of type {str(kind)[:64]!r} are not served, only {', '.join(ITEMS)}."
        raise bad_request(message, f"{place}.type")
    return ITEMS[kind]
