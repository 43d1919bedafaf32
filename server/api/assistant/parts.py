"""The parts of an assistant's message, as they come out of its text."""

from typing import Protocol

import msgspec


class CallDelta(msgspec.Struct, frozen=True):
    """The next piece of a call of a tool.

    index: which of the message's calls, from 0. id, name: with the first piece of a call; None in later ones.
    arguments: the next piece of their JSON.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Parts(msgspec.Struct):
    """What some text adds to a message."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = []


class MessageParser(Protocol):
    """Takes one message's text as it comes. The parts do not depend on how the text was cut into pieces."""

    def push(self, text: str) -> Parts:
        """Take text, and return what is sure by now."""

    def flush(self) -> Parts:
        """Return what was held back, when no more text comes."""
