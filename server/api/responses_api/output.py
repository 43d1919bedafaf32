"""The output of one response: parts of the assistant's message to items, and to the events that tell of them."""

import secrets
from collections.abc import Callable, Iterator, Sequence

from ..assistant.blocks import Blocks, Change, Closed, Grown, Opened
from ..assistant.parts import Parts
from ..openai.text_deltas import Delta, ShownToken
from .events import Event, OutputItemAdded, OutputItemDone
from .forms import FORMS, Form
from .structs import OutputItem, Scores, Status

Score = Callable[[Sequence[ShownToken]], Scores]


class Output:
    """The items so far. reasoning_tokens: of those whose text was reasoning.

    score: returns the logprobs of tokens, in a response's form; of none where they are not asked for.
    """

    def __init__(self, summarised: bool, score: Score) -> None:
        self.items: list[OutputItem] = []
        self.reasoning_tokens = 0
        self._summarised = summarised
        self._score = score
        self._blocks = Blocks()
        self._form: Form | None = None  # of the last block, set when it opens
        self._shown: list[ShownToken] = []  # tokens whose text the parser still holds back
        self._tokens = 0  # their number, with those that show nothing

    def take(self, delta: Delta, parts: Parts) -> Iterator[Event]:
        """Add a step's delta, and the parts that its text has brought."""
        self._shown += delta.shown
        self._tokens += len(delta.token_ids)
        if parts.reasoning:
            self.reasoning_tokens += self._tokens
        scores = self._score(self._shown) if parts.content else []
        if parts.reasoning or parts.content or parts.calls:
            self._shown, self._tokens = [], 0
        yield from self._tell(self._blocks.take(parts), scores, "completed")

    def end(self, status: Status) -> Iterator[Event]:
        """Close the last item. A response has one item at least. status: of the last item."""
        if not self._blocks.all:
            yield from self._tell(self._blocks.open_text(), [], status)
        last = self._blocks.all[-1]
        if last.kind == "reasoning":
            self.reasoning_tokens += self._tokens
        scores = self._score(self._shown) if last.kind == "text" else []
        if scores and self._form is not None:  # of tokens without a text, such as the end-of-sequence token
            yield from self._form.grow("", scores)
        yield from self._tell(self._blocks.close(), [], status)

    def _tell(self, changes: Iterator[Change], scores: Scores, status: Status) -> Iterator[Event]:
        for change in changes:
            if isinstance(change, Opened):
                yield from self._open(change)
            elif isinstance(change, Grown):
                assert self._form is not None
                yield from self._form.grow(change.text, scores if change.block.kind == "text" else [])
            elif isinstance(change, Closed):
                yield from self._close(change, status)

    def _open(self, change: Opened) -> Iterator[Event]:
        kind = "summary" if change.block.kind == "reasoning" and self._summarised else change.block.kind
        self._form = FORMS[kind](change.index, secrets.token_hex(16), change.block)
        yield OutputItemAdded(output_index=change.index, item=self._form.item("in_progress"))
        yield from self._form.begin()

    def _close(self, change: Closed, status: Status) -> Iterator[Event]:
        assert self._form is not None
        yield from self._form.end()
        self.items.append(self._form.item(status))
        yield OutputItemDone(output_index=change.index, item=self.items[-1])
