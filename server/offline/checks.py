"""Checks of what a Python user asks, at the door: the forms that the server's schemas hold clients to.

What is wrong is a ValueError before anything has run. The ranges of sampling parameters are in `sampling`; which
adapters, tokens and layers there are, is for those who have them to say.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

Prompt = str | Sequence[int]
Message = Mapping[str, Any]


def list_prompts(prompts: Any) -> list[str | list[int]]:
    """Return a list of prompts, which one prompt may stand for. Raises ValueError for what is neither text nor ids."""
    if isinstance(prompts, str):
        return [prompts]
    each = list(prompts) if _is_list(prompts) else [prompts]
    return [_prompt(prompt) for prompt in ([each] if each and _is_whole(each[0]) else each)]


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    token_ids: list[Any] = list(prompt) if _is_list(prompt) else [None]
    if not all(map(_is_whole, token_ids)):
        raise ValueError(f"a prompt is a text or a list of token ids, and not {_shown(prompt)}")
    return [int(token_id) for token_id in token_ids]


def list_chats(messages: Any) -> list[list[Message]]:
    """Return a list of chats, which one chat may stand for. Raises ValueError for what is no message with a text."""
    given = list(messages) if _is_list(messages) else [messages]
    return [_chat(chat) for chat in ([given] if all(isinstance(one, Mapping) for one in given) else given)]


def _chat(chat: Any) -> list[Message]:
    messages = list(chat) if _is_list(chat) else [chat]
    if not messages:
        raise ValueError("a chat has one message or more")
    for message in messages:
        fields = message if isinstance(message, Mapping) else {}
        if not all(isinstance(fields.get(name), str) for name in ("role", "content")):
            raise ValueError(f"a message has a role and a content, both texts, and is not {_shown(message)}")
    return messages


def list_stops(stop: Any) -> list[str]:
    """Return the stop strings. Raises ValueError where one is empty, or no string."""
    stops: list[Any] = list(stop) if _is_list(stop) else [None]
    if not all(isinstance(one, str) and one for one in stops):
        raise ValueError(f"stop is a list of strings, none of them empty, and not {_shown(stop)}")
    return stops


def check_task_id(task_id: Any) -> None:
    """Raise ValueError for what is no number of a task."""
    if task_id is not None and not _is_whole(task_id):
        raise ValueError(f"task_id is a whole number, and not {_shown(task_id)}")


def adapter_each(adapter: Any, number: int) -> list[Any]:
    """Return who answers each prompt. Raises ValueError for what is neither a name nor a mixture of numbers."""
    each = one_each("adapter", adapter, number, str | Mapping | None)
    for one in each:
        for name, weight in one.items() if isinstance(one, Mapping) else ():
            if not (isinstance(name, str) and isinstance(weight, Real)):
                raise ValueError(f"a mixture has names and their weights, which are numbers, and not {_shown(one)}")
    return each


def one_each(name: str, given: Any, number: int, kind: Any) -> list[Any]:
    """Return what was given for all, or for each, once a prompt. Raises ValueError where numbers or kinds differ."""
    if isinstance(given, kind):
        return [given] * number
    each = list(given) if _is_list(given) else [given]
    for one in each:
        if not isinstance(one, kind):
            raise ValueError(f"{name} cannot be {_shown(one)}")
    if len(each) != number:
        raise ValueError(f"{name} has {len(each)} entries for {number} prompts; give one for all, or one each")
    return each


def _is_list(given: Any) -> TypeGuard[Iterable[Any]]:
    """Tell whether this holds several things: texts, bytes and mappings are one."""
    return isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)


def _is_whole(given: Any) -> bool:
    return isinstance(given, Integral) and not isinstance(given, bool)


def _shown(given: Any) -> str:
    return f"{given!r:.100}"
