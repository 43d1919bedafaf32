"""Chats with tools, in the words that a model's template knows.

What a template writes itself is left to it. What it does not know becomes text: definitions are told in the system's
message, calls and results stand between Hermes' marks, so that nothing that was said is dropped.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..text.template_traits import TemplateTraits
from .marked_calls import HERMES_CLOSE, HERMES_OPEN

Chat = list[dict[str, Any]]
Tools = Sequence[Mapping[str, Any]]

RESULT_OPEN, RESULT_CLOSE = "<tool_response>", "</tool_response>"
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")


def needs_traits(messages: Chat, tools: Tools | None) -> bool:
    """Return whether it matters to a chat what its template knows of tools."""
    return bool(tools) or any("tool_calls" in message or message["role"] == "tool" for message in messages)


def adapt(messages: Chat, tools: Tools | None, traits: TemplateTraits) -> tuple[Chat, Tools | None]:
    """Return messages and tools as the template takes them."""
    chat = [dict(message) for message in messages]
    chat = _as_calls(_named(chat), traits) if traits.calls else [_written_calls(message) for message in chat]
    if not traits.results:
        chat = _written_results(chat)
    if tools and not traits.tools:
        chat, tools = _told(chat, instructions(tools), traits.system), None
    return chat, tools


def instructions(tools: Tools) -> str:
    """Return what a model is told that knows of no tools: what there is, and how to call it. Short, as contexts are."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False, separators=(",", ":")) for tool in tools)
    form = '{"name": "NAME", "arguments": {...}}'
    return (
        f"You may call functions:\n<tools>\n{listed}\n</tools>\n"
        f"To call one, answer\n{HERMES_OPEN}\n{form}\n{HERMES_CLOSE}"
    )


def _named(chat: Chat) -> Chat:
    """Name the function in each result: some templates write it, and OpenAI's clients leave it out."""
    names: dict[str, str] = {}
    for message in chat:
        names.update((call["id"], call["function"]["name"]) for call in message.get("tool_calls", ()))
        if message["role"] == "tool" and "name" not in message and message.get("tool_call_id") in names:
            message["name"] = names[message["tool_call_id"]]
    return chat


def _as_calls(chat: Chat, traits: TemplateTraits) -> Chat:
    for message in chat:
        if "tool_calls" in message:
            message["tool_calls"] = [_call(call, traits) for call in message["tool_calls"]]
        if "tool_call_id" in message and traits.short_ids:
            message["tool_call_id"] = _short(message["tool_call_id"])
    return chat if traits.several else _one_by_one(chat)


def _call(call: Mapping[str, Any], traits: TemplateTraits) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"] if traits.written_arguments else _loaded(function["arguments"])
    call_id = _short(call["id"]) if traits.short_ids else call["id"]
    return {"id": call_id, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _loaded(arguments: str) -> Any:
    """Return the object that arguments are; as they are where they are none."""
    try:
        loaded = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return loaded if isinstance(loaded, dict) else arguments


def _short(call_id: str) -> str:
    """Return an id as Mistral's templates take it, the same for the same one."""
    return call_id if _SHORT_ID.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _one_by_one(chat: Chat) -> Chat:
    """Give each call a message of its own, with its result behind it."""
    apart: Chat = []
    place = 0
    while place < len(chat):
        message = chat[place]
        place += 1
        calls = message.get("tool_calls", [])
        if len(calls) < 2:
            apart.append(message)
            continue
        results: Chat = []
        while place < len(chat) and chat[place]["role"] == "tool":
            results.append(chat[place])
            place += 1
        for number, call in enumerate(calls):
            apart.append({**message, "content": message["content"] if number == 0 else "", "tool_calls": [call]})
            apart += [result for result in results if result.get("tool_call_id") == call["id"]]
        known = {call["id"] for call in calls}
        apart += [result for result in results if result.get("tool_call_id") not in known]
    return apart


def _written_calls(message: dict[str, Any]) -> dict[str, Any]:
    """Write an assistant's calls into its text."""
    calls = message.pop("tool_calls", [])
    written = [f"{HERMES_OPEN}\n{_object(call)}\n{HERMES_CLOSE}" for call in calls]
    return {**message, "content": "\n".join([*([message["content"]] if message["content"] else []), *written])}


def _object(call: Mapping[str, Any]) -> str:
    function = call["function"]
    return json.dumps({"name": function["name"], "arguments": _loaded(function["arguments"])}, ensure_ascii=False)


def _written_results(chat: Chat) -> Chat:
    """Make results into words of the user, with those beside them: in many templates roles take turns."""
    written: Chat = []
    open_ = False  # the last message has results, and takes what the user says next
    for message in chat:
        is_result = message["role"] == "tool"
        text = f"{RESULT_OPEN}\n{message['content']}\n{RESULT_CLOSE}" if is_result else message["content"]
        if open_ and (is_result or message["role"] == "user"):
            written[-1]["content"] += f"\n{text}"
        elif is_result:
            written.append({"role": "user", "content": text})
        else:
            written.append(message)
        open_ = is_result
    return written


def _told(chat: Chat, text: str, has_system: bool) -> Chat:
    """Put instructions into the system's message, which may have to be made; else before what the user says first."""
    role = "system" if has_system else "user"
    place = next((i for i, message in enumerate(chat) if message["role"] == role), None)
    if place is not None and (not has_system or place == 0):
        first, second = (chat[place]["content"], text) if has_system else (text, chat[place]["content"])
        told = {**chat[place], "content": f"{first}\n\n{second}" if first and second else first or second}
        return [*chat[:place], told, *chat[place + 1 :]]
    return [{"role": role, "content": text}, *chat]
