"""Sequences whose grammars are being compiled: they hold nothing up, and nothing is held for them."""

from collections.abc import Sequence as Several
from concurrent.futures import Future
from typing import NamedTuple

from ..added_tokens import AddedToken
from .grammar.compiler import GrammarCompiler, InvalidGrammar
from .grammar.matcher import Matcher
from .scheduling.sequence import Sequence


class Compiled(NamedTuple):
    """What has become of sequences: those that can be queued, and those that cannot be served, with why."""

    ready: list[Sequence]
    failed: list[tuple[Sequence, str]]


class GrammarQueue:
    """The sequences that wait for their grammars."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._waiting: dict[Sequence, Future[Matcher]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence, added: Several[AddedToken] = ()) -> None:
        """Begin to compile the grammar that its request has. added: tokens that its adapter has beside the base's."""
        grammar = sequence.sampling.grammar
        assert grammar is not None
        self._waiting[sequence] = self._compiler.compile(grammar, sequence.end_token_ids, added)

    def remove(self, sequence: Sequence) -> bool:
        """Forget a sequence. Returns whether it has waited here."""
        return self._waiting.pop(sequence, None) is not None

    def take(self) -> Compiled:
        """Take out the sequences whose grammars are there, or cannot be."""
        compiled = Compiled([], [])
        for sequence in [sequence for sequence, future in self._waiting.items() if future.done()]:
            try:
                sequence.form = self._waiting.pop(sequence).result()
            except InvalidGrammar as error:
                compiled.failed.append((sequence, str(error)))
            else:
                compiled.ready.append(sequence)
        return compiled

    def close(self) -> None:
        self._compiler.close()
