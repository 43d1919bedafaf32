"""The items that blocks of a message become, and the events of which each kind consists.

One class a kind of item, all with the same methods, and a table of them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from ..assistant.blocks import Block
from .events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    Event,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    SummaryPartAdded,
    SummaryPartDone,
    SummaryTextDelta,
    SummaryTextDone,
)
from .structs import (
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    Scores,
    Status,
    SummaryText,
)


class Form(Protocol):
    """An item on its way. The events are those between its `added` and its `done`."""

    def item(self, status: Status) -> OutputItem:
        """Return the item as it is now."""

    def begin(self) -> Iterator[Event]: ...

    def grow(self, text: str, scores: Scores) -> Iterator[Event]:
        """Return the events of more text. scores: logprobs of the tokens that it shows, for a message's."""

    def end(self) -> Iterator[Event]: ...


class _Numbered:
    """What the kinds have in common. The item's id begins with its kind."""

    kind: str

    def __init__(self, index: int, identity: str, block: Block) -> None:
        self._id = f"{self.kind}_{identity}"
        self._place: dict[str, Any] = {"output_index": index, "item_id": self._id}
        self._block = block


class TextForm(_Numbered):
    """A message of the assistant's."""

    kind = "msg"

    def __init__(self, index: int, identity: str, block: Block) -> None:
        super().__init__(index, identity, block)
        self._scores: Scores = []

    def item(self, status: Status) -> OutputMessage:
        return OutputMessage(self._id, status, [] if status == "in_progress" else [self._part()])

    def begin(self) -> Iterator[Event]:
        yield ContentPartAdded(**self._place, part=OutputText(""))

    def grow(self, text: str, scores: Scores) -> Iterator[Event]:
        self._scores += scores
        yield OutputTextDelta(**self._place, delta=text, logprobs=scores)

    def end(self) -> Iterator[Event]:
        yield OutputTextDone(**self._place, text=self._block.text, logprobs=self._scores)
        yield ContentPartDone(**self._place, part=self._part())

    def _part(self) -> OutputText:
        return OutputText(self._block.text, logprobs=self._scores)


class CallForm(_Numbered):
    """A call of a function."""

    kind = "fc"

    def item(self, status: Status) -> OutputFunctionCall:
        arguments = "" if status == "in_progress" else self._block.text
        return OutputFunctionCall(self._id, status, self._block.call_id, self._block.name, arguments)

    def begin(self) -> Iterator[Event]:
        yield from ()

    def grow(self, text: str, scores: Scores) -> Iterator[Event]:
        yield ArgumentsDelta(**self._place, delta=text)

    def end(self) -> Iterator[Event]:
        yield ArgumentsDone(**self._place, name=self._block.name, arguments=self._block.text)


class ReasoningForm(_Numbered):
    """Reasoning, as the model wrote it."""

    kind = "rs"

    def item(self, status: Status) -> OutputReasoning:
        content = [] if status == "in_progress" else [ReasoningText(self._block.text)]
        return OutputReasoning(self._id, status, [], content)

    def begin(self) -> Iterator[Event]:
        yield ContentPartAdded(**self._place, part=ReasoningText(""))

    def grow(self, text: str, scores: Scores) -> Iterator[Event]:
        yield ReasoningTextDelta(**self._place, delta=text)

    def end(self) -> Iterator[Event]:
        yield ReasoningTextDone(**self._place, text=self._block.text)
        yield ContentPartDone(**self._place, part=ReasoningText(self._block.text))


class SummaryForm(_Numbered):
    """Reasoning for clients that show summaries only."""

    kind = "rs"

    def item(self, status: Status) -> OutputReasoning:
        return OutputReasoning(self._id, status, [] if status == "in_progress" else [SummaryText(self._block.text)])

    def begin(self) -> Iterator[Event]:
        yield SummaryPartAdded(**self._place, part=SummaryText(""))

    def grow(self, text: str, scores: Scores) -> Iterator[Event]:
        yield SummaryTextDelta(**self._place, delta=text)

    def end(self) -> Iterator[Event]:
        yield SummaryTextDone(**self._place, text=self._block.text)
        yield SummaryPartDone(**self._place, part=SummaryText(self._block.text))


FORMS: Mapping[str, Callable[[int, str, Block], Form]] = {
    "text": TextForm,
    "call": CallForm,
    "reasoning": ReasoningForm,
    "summary": SummaryForm,
}
"""A block's kind, or `summary` for reasoning that is one, to its form: made of its number, an id and the block."""
