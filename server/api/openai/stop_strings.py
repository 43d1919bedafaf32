"""Stop strings over text that comes in pieces. Knows text only.

The answer does not depend on how the text was cut into pieces: the match that is complete first ends it; of matches
that end together, the longest.

All sequences of a request walk over one table of its stop strings (Aho and Corasick's), of which only what some text
has walked over is ever made. Both take time linear in the text, whatever the stop strings are.
"""

import re
from collections.abc import Sequence


class StopTable:
    """The table of stop strings that the sequences of one request share.

    It grows as they walk, and no walk changes what another finds.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.any = bool(stops)
        self.root = _Node(0, tuple(stops))
        self._begin = re.compile("[" + "".join(map(re.escape, self.root.children)) + "]") if stops else None

    def first_place(self, text: str, start: int) -> int:
        """Return where from `start` on a stop string may begin; the text's length where none does."""
        found = self._begin.search(text, start) if self._begin is not None else None
        return len(text) if found is None else found.start()

    def step(self, node: "_Node", character: str) -> "_Node":
        """Return the node of the longest prefix of a stop string that ends the text: the one that led to `node`, and
        `character`.
        """
        while character not in node.children:
            if node is self.root:
                return node
            node = node.shorter
        return node.children[character] or self._grow(node, character)

    def _grow(self, node: "_Node", character: str) -> "_Node":
        """Add the node behind `node`.

        All nodes on the way to it exist, so it calls itself once a stop string at most.
        """
        depth = node.depth
        grown = _Node(depth + 1, tuple(s for s in node.stops if len(s) > depth and s[depth] == character))
        grown.shorter = self.root if node is self.root else self.step(node.shorter, character)
        grown.match = grown.match or grown.shorter.match
        node.children[character] = grown
        return grown


class _Node:
    """A prefix of stop strings. stops: those that begin with it. match: the longest stop string with which it ends.

    children: by the next character; None until a text gets there. shorter: of its longest proper suffix that is such a
    prefix too.
    """

    __slots__ = ("children", "depth", "match", "shorter", "stops")

    def __init__(self, depth: int, stops: tuple[str, ...]) -> None:
        self.depth = depth
        self.stops = stops
        self.children: dict[str, _Node | None] = {s[depth]: None for s in stops if len(s) > depth}
        self.match = next((s for s in stops if len(s) == depth), None)
        self.shorter = self  # set by StopTable._grow, but for the root


NO_STOPS = StopTable(())


class StopStrings:
    """Hold back text that may still become a stop string. After a match, nothing more is taken.

    stops: the table that a request's sequences share, or the strings of one that is alone. include: keep the stop
    string itself in the text.
    """

    def __init__(self, stops: StopTable | Sequence[str], include: bool = False) -> None:
        self.matched: str | None = None
        self._table = stops if isinstance(stops, StopTable) else StopTable(stops)
        self._node = self._table.root
        self._include = include
        self._held = ""

    @property
    def any(self) -> bool:
        """Whether there are stop strings to look for."""
        return self._table.any

    def push(self, text: str) -> str:
        """Add text, and return what is safe to show now."""
        if not self._table.any:
            return text
        end = self._walk(text)
        if self.matched is not None:
            return self._cut(self._held + text[:end], self.matched)
        shown = self._held + text
        keep = len(shown) - self._node.depth
        self._held = shown[keep:]
        return shown[:keep]

    def flush(self) -> str:
        """Return what is still held back, when no more text will come."""
        held, self._held = self._held, ""
        return held

    def _walk(self, text: str) -> int:
        """Return how many characters were walked over: all of them, or those up to the end of a match."""
        table, node, place = self._table, self._node, 0
        while place < len(text):
            if node is table.root and (place := table.first_place(text, place)) == len(text):
                break
            node = table.step(node, text[place])
            place += 1
            if node.match is not None:
                self.matched = node.match
                break
        self._node = node
        return place

    def _cut(self, text: str, stop: str) -> str:
        self._held = ""
        return text if self._include else text[: len(text) - len(stop)]
