"""An assistant's message as a row of blocks, in the order in which they began: reasoning, text, calls of tools.

The forms of other APIs than chats are made from it, whole or as a stream: a whole is the sum of its changes.
"""

from collections.abc import Iterator
from typing import Literal

import msgspec

from .parts import CallDelta, Parts

BlockKind = Literal["reasoning", "text", "call"]


class Block(msgspec.Struct):
    """A run of one kind. text: what it says, for a call the JSON of its arguments. call_id, name: of a call."""

    kind: BlockKind
    text: str = ""
    call_id: str = ""
    name: str = ""


class Opened(msgspec.Struct, frozen=True):
    """Block number `index` begins, still empty."""

    index: int
    block: Block


class Grown(msgspec.Struct, frozen=True):
    """Block number `index` says more."""

    index: int
    block: Block
    text: str


class Closed(msgspec.Struct, frozen=True):
    """Block number `index` is whole."""

    index: int
    block: Block


Change = Opened | Grown | Closed


class Blocks:
    """The blocks of one message, of which at most the last is open."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open = False  # whether the last one is
        self._call: int | None = None  # the number of the call that the last one is

    def take(self, parts: Parts) -> Iterator[Change]:
        """Add what the message's next text has brought; to be run to its end."""
        if parts.reasoning:
            yield from self._say("reasoning", parts.reasoning)
        if parts.content:
            yield from self._say("text", parts.content)
        for call in parts.calls:
            yield from self._call_on(call)

    def open_text(self) -> Iterator[Change]:
        """Begin a text, for a message that may be empty, unless the last block is an open text."""
        yield from self._say("text", "")

    def close(self) -> Iterator[Change]:
        """Close the last block, if it is open."""
        if self._open:
            self._open, self._call = False, None
            yield Closed(len(self.all) - 1, self.all[-1])

    def _say(self, kind: BlockKind, text: str) -> Iterator[Change]:
        if not self._open or self.all[-1].kind != kind:
            yield from self._begin(Block(kind))
        yield from self._grow(text)

    def _call_on(self, call: CallDelta) -> Iterator[Change]:
        if not self._open or self._call != call.index:
            yield from self._begin(Block("call", call_id=call.id or "", name=call.name or ""))
            self._call = call.index
        yield from self._grow(call.arguments)

    def _begin(self, block: Block) -> Iterator[Change]:
        yield from self.close()
        self.all.append(block)
        self._open = True
        yield Opened(len(self.all) - 1, block)

    def _grow(self, text: str) -> Iterator[Change]:
        if text:
            self.all[-1].text += text
            yield Grown(len(self.all) - 1, self.all[-1], text)
