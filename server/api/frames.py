"""Server-sent events as bytes. Those that say nothing new but a text are cut from a template.

Knows JSON and structs; does not know what is said.
"""

import uuid
from collections.abc import Callable

import msgspec

encode = msgspec.json.Encoder().encode

_MARK = uuid.uuid4().hex  # where a template's text goes: no client can have put the same into another field


def frame(event: msgspec.Struct) -> bytes:
    return b"data: %b\n\n" % encode(event)


class TextFrames:
    """example: makes the event with which sequence `index` says `text`; called once for each sequence."""

    def __init__(self, example: Callable[[int, str], msgspec.Struct]) -> None:
        self._example = example
        self._templates: dict[int, tuple[bytes, bytes]] = {}  # what stands before and behind the text

    def __call__(self, index: int, text: str) -> bytes:
        """The same bytes as `frame(example(index, text))`."""
        template = self._templates.get(index)
        if template is None:
            before, behind = frame(self._example(index, _MARK)).split(encode(_MARK))
            template = self._templates[index] = (before, behind)
        return template[0] + encode(text) + template[1]
