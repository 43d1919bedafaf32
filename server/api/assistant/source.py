"""Text that comes in pieces, for parsers that are written as if all of it were there.

A parser is a generator: it yields where it needs more text, and goes on when some has come or none will. What it does
depends on the characters and never on where the pieces were cut, as it can only wait for them one after the other.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
Emit = Callable[[str], None]

MOST_HELD = 1 << 16  # characters that are kept for the case that they turn out to be something else


class Source:
    """The text of one message. ended: no more comes."""

    def __init__(self) -> None:
        self.ended = False
        self._text = ""
        self._place = 0  # of the next character
        self._kept: int | None = None  # where the text begins that `release` gives back

    def feed(self, text: str) -> None:
        start = self._place if self._kept is None else self._kept
        self._text = self._text[start:] + text
        self._place -= start
        self._kept = None if self._kept is None else 0

    def keep(self, before: str = "") -> None:
        """Keep what is taken from now on, and `before`, which was taken last."""
        self._kept = self._place - len(before)

    @property
    def is_full(self) -> bool:
        """Return whether more is kept than should be."""
        return self._kept is not None and self._place - self._kept > MOST_HELD

    def release(self) -> str:
        """Return what was kept, and keep no more."""
        kept = "" if self._kept is None else self._text[self._kept : self._place]
        self._kept = None
        return kept

    def peek(self) -> Steps[str]:
        """Return the next character, "" at the end of the text."""
        while self._place == len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._place]

    def ready(self) -> Steps[str]:
        """Return what has come and is not taken, at least a character; "" at the end of the text."""
        yield from self.peek()
        return self._text[self._place :]

    def take(self, length: int = 1) -> str:
        """Take text that is known to be there."""
        taken = self._text[self._place : self._place + length]
        self._place += length
        return taken

    def skip(self, literal: str) -> Steps[bool]:
        """Take a literal if it comes next, and return whether it did."""
        while True:
            there = self._text[self._place : self._place + len(literal)]
            if there == literal:
                self._place += len(literal)
                return True
            if self.ended or not literal.startswith(there):
                return False
            yield

    def spaces(self) -> Steps[str]:
        """Take white space, and return it."""
        taken = []
        while (yield from self.peek()).isspace():
            taken.append(self.take())
        return "".join(taken)

    def up_to(self, marks: Sequence[str], emit: Emit) -> Steps[str]:
        """Give away the text before the first mark, as it comes; take and return the mark, or "" where none comes.

        marks: none of them begins another.
        """
        while True:
            text = yield from self.ready()
            found = min(((text.find(mark), mark) for mark in marks if mark in text), default=None)
            length = found[0] if found is not None else len(text) if self.ended else len(text) - _held(text, marks)
            if length:
                emit(self.take(length))
            if found is not None:
                return self.take(len(found[1]))
            if self.ended:
                return ""
            if length < len(text) or not text:
                yield


def _held(text: str, marks: Sequence[str]) -> int:
    """Return the length of the longest end of a text with which a mark may begin."""
    longest = 0
    for mark in marks:
        tail = text[-(len(mark) - 1) :] if len(mark) > 1 else ""
        place = tail.find(mark[0])
        while place >= 0 and not mark.startswith(tail[place:]):
            place = tail.find(mark[0], place + 1)
        if place >= 0:
            longest = max(longest, len(tail) - place)
    return longest
