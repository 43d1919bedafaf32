"""What a chat template does with tools and with roles, found out by rendering small chats.

Its source would not tell: a template may name a role only to refuse it, or write any role by its name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]
Show = Callable[[Sequence[Message], Sequence[Mapping[str, Any]] | None], str | None]
"""Renders messages and tools; returns None where the template refuses them or fails."""

_WORD = "zeppelin"  # what to look for in the prompt
_OTHER = "marzipan"
_SHORT_ID, _LONG_ID = "a1b2c3d4e", "call_0123456789abcdef"
_TOOL = {
    "type": "function",
    "function": {
        "name": _WORD,
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string", "description": "d"}},
            "required": ["a"],
        },
    },
}
_USER: Message = {"role": "user", "content": "hi"}
_ASSISTANT: Message = {"role": "assistant", "content": "ok"}


@dataclass(frozen=True)
class TemplateTraits:
    """What of a chat the template writes into the prompt.

    system: system messages. tools: definitions. calls: `tool_calls` of an assistant, with several: also more than one
    of a message. results: messages of the role `tool`. written_arguments: arguments of calls as text, not as objects.
    short_ids: ids of calls have to be nine letters and digits.
    """

    system: bool
    tools: bool
    calls: bool
    several: bool
    results: bool
    written_arguments: bool = False
    short_ids: bool = False


def takes_parts(show: Callable[[Sequence[Message]], str | None]) -> bool:
    """Return whether a template reads contents as lists of parts alone, as many of multimodal models do."""
    user = {"role": "user", "content": _WORD}
    return not _has(_WORD, show([user])) and _has(_WORD, show([in_parts(user)]))


def in_parts(message: Message) -> Message:
    """Return a message with its text as the one part of its content."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def find_traits(show: Show) -> TemplateTraits:
    """Find out what a template does."""
    system = _has(_WORD, show([{"role": "system", "content": _WORD}, _USER], None))
    tools = _has(_WORD, show([_USER], [_TOOL])) or _has(
        _WORD, show([{"role": "system", "content": "s"}, _USER], [_TOOL])
    )
    written = not _shows_calls(show, _SHORT_ID, {}) and _shows_calls(show, _SHORT_ID, "{}")
    empty: Any = "{}" if written else {}
    calls = written or _shows_calls(show, _SHORT_ID, empty)
    return TemplateTraits(
        system,
        tools,
        calls,
        several=calls and _has(_OTHER, show([*_called(empty, _WORD, _OTHER), *_answered(2)], None)),
        results=calls and _has("result0", show([*_called(empty, _WORD), *_answered(1)], None)),
        written_arguments=written,
        short_ids=calls and not _shows_calls(show, _LONG_ID, empty),
    )


def _has(word: str, prompt: str | None) -> bool:
    return prompt is not None and word in prompt


def _shows_calls(show: Show, call_id: str, arguments: Any) -> bool:
    """Return whether a call is in the prompt, with its result behind it or, where that is refused, without."""
    called = _called(arguments, _WORD, call_id=call_id)
    return any(_has(_WORD, show([*called, *behind], None)) for behind in (_answered(1, call_id), [_USER]))


def _called(arguments: Any, *names: str, call_id: str = _SHORT_ID) -> list[Message]:
    calls = [
        {"id": _numbered(call_id, i), "type": "function", "function": {"name": name, "arguments": arguments}}
        for i, name in enumerate(names)
    ]
    return [_USER, {"role": "assistant", "content": "", "tool_calls": calls}]


def _answered(count: int, call_id: str = _SHORT_ID) -> list[Message]:
    results = [
        {"role": "tool", "tool_call_id": _numbered(call_id, i), "name": (_WORD, _OTHER)[i], "content": f"result{i}"}
        for i in range(count)
    ]
    return [*results, _ASSISTANT, _USER]


def _numbered(call_id: str, number: int) -> str:
    return f"{call_id[:-1]}{number}"
