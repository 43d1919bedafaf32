"""The messages of one request on their way to a client: their text told apart into content, reasoning and calls.

The same for all routes whose answers are messages.
"""

from typing import Literal

from ...wire.messages import FinishReason
from ..assistant.parts import MessageParser, Parts
from .generation import Plan
from .text_deltas import Delta

ChatFinish = FinishReason | Literal["tool_calls"]


class ChatParts:
    """The parsers of a plan's sequences."""

    def __init__(self, plan: Plan) -> None:
        self._reading = plan.reading
        self._parsers: dict[int, MessageParser] = {}
        self._called: set[int] = set()  # sequences whose message has calls

    def take(self, index: int, delta: Delta) -> Parts:
        """Return what a sequence's next delta adds to its message; with the last one all that was held back."""
        if self._reading is None:
            return Parts(delta.text)
        if index not in self._parsers:
            self._parsers[index] = self._reading.new_parser()
        parser = self._parsers[index]
        parts = parser.push(delta.text)
        if delta.finish_reason is not None:
            parts = _joined(parts, parser.flush())
        if parts.calls:
            self._called.add(index)
        return parts

    def finish_reason(self, index: int, delta: Delta) -> ChatFinish | None:
        """Return why a message ended, as of what was taken: to have tools called, or the sequence's reason."""
        called = index in self._called and delta.finish_reason == "stop"
        return "tool_calls" if called else delta.finish_reason


def _joined(first: Parts, second: Parts) -> Parts:
    return Parts(first.content + second.content, first.reasoning + second.reasoning, [*first.calls, *second.calls])
