"""Stop strings over text that comes in pieces. Knows text only.

The answer does not depend on how the text was cut into pieces: the match that is complete first ends it; of matches
that end together, the longest.
"""

from collections.abc import Sequence


class StopStrings:
    """Holds back text that may still become a stop string. After a match, nothing more is taken.

    include: keep the stop string itself in the text.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self.matched: str | None = None
        self._matchers = [_Matcher(stop) for stop in stops]
        self._include = include
        self._held = ""

    @property
    def any(self) -> bool:
        """Whether there is anything to look for."""
        return bool(self._matchers)

    def push(self, text: str) -> str:
        """The text that is safe to show now."""
        if not self._matchers:
            return text
        for i, character in enumerate(text):
            full = [m for m in self._matchers if m.advance(character)]
            if full:
                return self._cut(self._held + text[: i + 1], max((m.stop for m in full), key=len))
        shown = self._held + text
        keep = max(m.length for m in self._matchers)
        self._held = shown[len(shown) - keep :]
        return shown[: len(shown) - keep]

    def flush(self) -> str:
        """What is still held back, when no more text will come."""
        held, self._held = self._held, ""
        return held

    def _cut(self, text: str, stop: str) -> str:
        self.matched = stop
        self._held = ""
        return text if self._include else text[: len(text) - len(stop)]


class _Matcher:
    """Knuth, Morris and Pratt: `length` characters of `stop` match the end of the text so far."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        self._fallback = _borders(stop)

    def advance(self, character: str) -> bool:
        """Take one more character; True when the whole stop string has been seen."""
        while self.length and self.stop[self.length] != character:
            self.length = self._fallback[self.length - 1]
        if self.stop[self.length] == character:
            self.length += 1
        return self.length == len(self.stop)


def _borders(pattern: str) -> list[int]:
    """For each prefix of `pattern`, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    for i in range(1, len(pattern)):
        length = borders[i - 1]
        while length and pattern[i] != pattern[length]:
            length = borders[length - 1]
        borders[i] = length + (pattern[i] == pattern[length])
    return borders
