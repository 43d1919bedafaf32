"""Grammars of requests, compiled on threads of their own, each kept for those that ask for the same again."""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from ...added_tokens import AddedToken, add_tokens, key_of
from ...deep_threads import DeepThreads
from ...wire.messages import ModelInfo
from .matcher import Matcher

logger = logging.getLogger(__name__)

THREADS = 2  # so that one slow grammar holds up no other
MOST_KEPT = 64  # compiled grammars, of some 10 to 1000 kB
MOST_VOCABULARIES = 16  # the base's and those of adapters with tokens of their own
LIMITS = LLParserLimits(
    initial_lexer_fuel=2_000_000,  # 40 ms of regular expressions
    max_grammar_size=250_000,
    max_lexer_states=50_000,  # of some 1.5 kB
    verbose_errors=False,  # they go to the client
)


class Words(NamedTuple):
    """The vocabulary that a grammar is over.

    tokenizer: the text of the base's `tokenizer.json`. eos_token_ids: the model's own. added: tokens behind the base's.
    """

    tokenizer: str
    eos_token_ids: tuple[int, ...]
    added: tuple[AddedToken, ...] = ()


class InvalidGrammar(ValueError):
    """A grammar cannot be compiled for a vocabulary. The message is for the client."""


def words_of(info: ModelInfo) -> Words | None:
    """Return the vocabulary that the base's grammars are over; None without a tokenizer."""
    return None if info.tokenizer is None else Words(info.tokenizer, tuple(info.eos_token_ids))


class GrammarCompiler:
    """Compiles grammars. base: the base's vocabulary; None for a model without a tokenizer."""

    def __init__(self, base: Words | None) -> None:
        self._base = base
        self._threads = DeepThreads(THREADS, thread_name_prefix="grammar")
        self._vocabularies: OrderedDict[str, Future[LLTokenizer]] = OrderedDict()
        self._kept: OrderedDict[tuple[str, str], Future[LLMatcher]] = OrderedDict()
        if base is not None:
            self._vocabulary("", base)  # takes up to a second for the largest, which no request waits for

    def compile(self, grammar: str, ends: Iterable[int], added: Sequence[AddedToken] = ()) -> Future[Matcher]:
        """Begin to compile a grammar, and return what will follow one sequence's output.

        grammar: llguidance's own text. ends: token ids that end the sequence. added: tokens that its adapter has beside
        the base's, which no other adapter's grammars know. The future raises InvalidGrammar.
        """
        future: Future[Matcher] = Future()
        if self._base is None:
            message = "this model has no tokenizer, so that an answer's form cannot be held to a grammar"
            future.set_exception(InvalidGrammar(message))
            return future
        eos, ends, key = frozenset(self._base.eos_token_ids), frozenset(ends), (key_of(added), grammar)

        def begin(prototype: Future[LLMatcher]) -> None:
            error = prototype.exception()
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(Matcher(prototype.result().deep_copy(), eos, ends, forget))

        def forget() -> None:
            self._kept.pop(key, None)

        self._prototype(key, self._base._replace(added=tuple(added))).add_done_callback(begin)
        return future

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _prototype(self, key: tuple[str, str], words: Words) -> Future[LLMatcher]:
        """Begin to compile a grammar, unless it is kept. key: of its vocabulary, and the grammar itself."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        vocabulary = self._vocabulary(key[0], words)
        self._kept[key] = self._threads.submit(_compile, vocabulary, key[1])
        _forget_oldest(self._kept, MOST_KEPT)
        return self._kept[key]

    def _vocabulary(self, key: str, words: Words) -> Future[LLTokenizer]:
        """Begin to make a vocabulary: before the grammars that wait for it, so that no two threads wait for a third."""
        if key not in self._vocabularies:
            self._vocabularies[key] = self._threads.submit(_make_vocabulary, words)
        self._vocabularies.move_to_end(key)
        _forget_oldest(self._vocabularies, MOST_VOCABULARIES)
        return self._vocabularies[key]


def _forget_oldest(kept: OrderedDict[Any, Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)


def _make_vocabulary(words: Words) -> LLTokenizer:
    try:
        # Any id does where there is no end of sequence: `Matcher` decides what ends.
        return LLTokenizer(_grown(words), eos_token=list(words.eos_token_ids) or [0])
    except ValueError as error:
        logger.warning("no grammar can be followed with this tokenizer: %s", error)
        raise InvalidGrammar(
            "this model's tokenizer is neither byte-level nor SentencePiece's, so that an answer's form cannot be held "
            "to a grammar"
        ) from error


def _grown(words: Words) -> str:
    """Return the text of a `tokenizer.json` with the added tokens. Raises ValueError where one has another's id."""
    if not words.added:
        return words.tokenizer
    tokenizer = Tokenizer.from_str(words.tokenizer)
    add_tokens(tokenizer, words.added)
    return str(tokenizer.to_str())


def _compile(vocabulary: Future[LLTokenizer], grammar: str) -> LLMatcher:
    matcher = LLMatcher(vocabulary.result(), grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise InvalidGrammar(f"the grammar cannot be compiled: {matcher.get_error().strip()[:1000]}")
    return matcher
