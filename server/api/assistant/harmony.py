"""GPT-OSS's format: messages on channels, between special tokens.

`analysis` is reasoning; `commentary` with a recipient `functions.NAME` is a call; all else is content.
"""

import re

from .output import Output
from .source import Emit, Source, Steps

CHANNEL, MESSAGE, CONSTRAIN = "<|channel|>", "<|message|>", "<|constrain|>"
START, END, CALL, RETURN = "<|start|>", "<|end|>", "<|call|>", "<|return|>"
MARKS = frozenset((CHANNEL, MESSAGE, CONSTRAIN, START, END, CALL, RETURN))
LONGEST_HEADER = 1024

_RECIPIENT = re.compile(r"\bto=functions\.([\w.\-]+)")
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")


def harmony(source: Source, output: Output) -> Steps[None]:
    """Read one message after the other; text that is in none is content."""
    mark = yield from source.up_to((CHANNEL, START), output.content)
    while mark:
        header: list[str] = [mark]
        found = yield from _header(source, header)
        if not found:
            output.content("".join(header))
        mark = yield from _body(source, _place_of("".join(header), output) if found else output.content)


def _header(source: Source, header: list[str]) -> Steps[bool]:
    """Take what stands before a message's text, and return whether there is a text."""
    while sum(map(len, header)) < LONGEST_HEADER:
        character = yield from source.peek()
        if not character:
            return False
        if character == "<" and (yield from source.skip(MESSAGE)):
            return True
        header.append(source.take())
    return False


def _place_of(header: str, output: Output) -> Emit:
    """Return where a message's text goes. Says what stands in the header of a call to nobody known."""
    recipient = _RECIPIENT.search(header)
    if recipient is not None and output.knows(recipient.group(1)):
        output.call(recipient.group(1))
        return output.arguments
    channel = _CHANNEL.search(header)
    if channel is not None and channel.group(1) == "analysis" and recipient is None:
        return output.reasoning
    if recipient is not None:
        output.content(f"{recipient.group()} ")
    return output.content


def _body(source: Source, emit: Emit) -> Steps[str]:
    """Pass a message's text on, and return the mark with which the next message begins."""
    mark = yield from source.up_to((END, CALL, RETURN, START, CHANNEL), emit)
    while mark in (END, CALL, RETURN):
        mark = yield from source.up_to((END, CALL, RETURN, START, CHANNEL), emit)
    return mark
