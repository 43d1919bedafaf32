"""The reading of one request's messages: which parser takes them, and a new one for each."""

from collections.abc import Generator
from dataclasses import dataclass

from .families import Family
from .output import Output, call_id
from .parts import MessageParser, Parts
from .source import Source, Steps
from .thinking import Thinking

PORTION = 4096  # characters that are looked at together: what is left of them is copied at every mark


@dataclass(frozen=True)
class Reading:
    """What to look for in the messages of a request.

    family: whose calls; None: no calls. names: of the tools that may be called. single: take the first call only.
    thinking: how what was thought is told apart; None: it is not. is_open: the prompt has begun it.
    """

    family: Family | None = None
    names: frozenset[str] = frozenset()
    single: bool = False
    thinking: Thinking | None = None
    is_open: bool = False

    @property
    def marks(self) -> frozenset[str]:
        """Return the special tokens that have to be in the text."""
        calls = self.family.marks if self.family is not None else frozenset()
        return calls | (self.thinking.marks if self.thinking is not None else frozenset())

    def new_parser(self) -> MessageParser:
        """Return a parser for one message."""
        new_id = self.family.new_id if self.family is not None else call_id
        output = Output(self.names, new_id, self.single)
        source = Source()
        return _Parser(source, output, self._read(source, output))

    def _read(self, source: Source, output: Output) -> Steps[None]:
        if self.thinking is not None:
            yield from self.thinking.reading(source, output, self.is_open)
        if self.family is not None:
            yield from self.family.read(source, output)
        yield from source.up_to((), output.content)


class _Parser:
    """Runs a reading as text comes."""

    def __init__(self, source: Source, output: Output, reading: Generator[None, None, None]) -> None:
        self._source = source
        self._output = output
        self._reading = reading

    def push(self, text: str) -> Parts:
        for start in range(0, len(text), PORTION):
            self._source.feed(text[start : start + PORTION])
            next(self._reading, None)
        return self._output.take()

    def flush(self) -> Parts:
        self._source.ended = True
        for _ in self._reading:
            pass
        self._output.end()
        return self._output.take()
