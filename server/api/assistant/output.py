"""What a parser has found in a message, until somebody takes it."""

import secrets
import string
from collections.abc import Callable, Container

from .parts import CallDelta, Parts

NewId = Callable[[], str]
_ALPHANUMERIC = string.ascii_letters + string.digits


def call_id() -> str:
    """Return an id of a call, as OpenAI has them."""
    return f"call_{secrets.token_hex(12)}"


def short_call_id() -> str:
    """Return nine letters and digits, which is what Mistral's templates take as the id of a call."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))


class Output:
    """The parts of one message. White space beside calls, and around the reasoning, is nobody's words and left out.

    names: of the tools that may be called. single: take the first call only.
    """

    def __init__(self, names: Container[str], new_id: NewId = call_id, single: bool = False) -> None:
        self.knows = names.__contains__
        self._new_id = new_id
        self._single = single
        self._parts = Parts()
        self._calls: list[CallDelta] = []
        self._num_calls = 0
        self._muted = False  # the call that goes on is one too many
        self._spaces = {"content": "", "reasoning": ""}  # white space that shows once something follows
        self._has = {"content": False, "reasoning": False}

    def content(self, text: str) -> None:
        self._say("content", text, leading=not self._num_calls)

    def reasoning(self, text: str) -> None:
        self._say("reasoning", text, leading=False)

    def call(self, name: str) -> None:
        """Begin a call."""
        self._muted = self._single and self._num_calls > 0
        if not self._muted:
            self._calls.append(CallDelta(self._num_calls, self._new_id(), name))
            self._num_calls += 1

    def arguments(self, text: str) -> None:
        """Add to the arguments of the last call."""
        if self._muted or not text:
            return
        last = self._calls.pop() if self._calls else CallDelta(self._num_calls - 1)
        self._calls.append(CallDelta(last.index, last.id, last.name, last.arguments + text))

    def end(self) -> None:
        """Show white space at the end of a message that has no calls."""
        if not self._num_calls:
            self._parts.content += self._spaces["content"]

    def take(self) -> Parts:
        """Return what is new."""
        parts, self._parts = self._parts, Parts()
        parts.calls, self._calls = self._calls, []
        return parts

    def _say(self, field: str, text: str, leading: bool) -> None:
        """Add text to a part. leading: white space before the first word shows, too."""
        text = self._spaces[field] + text
        words = text.rstrip()
        self._spaces[field] = text[len(words) :]
        if not words:
            return
        if not (self._has[field] or leading):
            words = words.lstrip()
        self._has[field] = True
        setattr(self._parts, field, getattr(self._parts, field) + words)
