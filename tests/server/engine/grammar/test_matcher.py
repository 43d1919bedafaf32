"""One sequence's place in a grammar: what may come, what ends it, and what an error leaves."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from peftserve.server.engine.grammar.compiler import GrammarCompiler
from peftserve.server.engine.grammar.matcher import Matcher

from .conftest import byte_level

Ids = Callable[[str], list[int]]
END, TURN, PAD = 256, 257, 258


@pytest.fixture
def make(compiler: GrammarCompiler) -> Callable[..., Matcher]:
    def made(regex: str, ends: Iterable[int] = (END,)) -> Matcher:
        return compiler.compile(LLMatcher.grammar_from_regex(regex), ends).result(timeout=30)

    return made


def allowed(matcher: Matcher, words: int = 9) -> set[int]:
    mask = np.zeros(words, np.int32)
    matcher.fill(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def test_tokens_are_followed_to_the_only_end(make: Callable[..., Matcher], ids: Ids) -> None:
    matcher = make("ab?")
    assert allowed(matcher) == {*ids("a")}
    assert not matcher.take(*ids("a"))
    assert allowed(matcher) == {*ids("b"), END}
    assert matcher.take(*ids("b"))
    assert matcher.error is None
    assert allowed(matcher) == {END}


@pytest.mark.parametrize("ends", [(), (TURN,), (END, TURN), (PAD,)])
def test_what_ends_the_sequence_comes_where_the_grammar_is_complete(
    make: Callable[..., Matcher], ids: Ids, ends: tuple[int, ...]
) -> None:
    matcher = make("a+", ends)
    assert allowed(matcher) == {*ids("a")}
    matcher.take(*ids("a"))
    assert allowed(matcher) == {*ids("a"), *ends}


def test_a_mask_may_be_narrower_or_wider_than_the_vocabulary(make: Callable[..., Matcher], ids: Ids) -> None:
    matcher = make(".*", (END, TURN))
    whole = allowed(matcher)
    assert {END, TURN} <= whole
    assert PAD not in whole
    for words in (1, 4, 8):
        assert allowed(matcher, words) == {token for token in whole if token < 32 * words}
    assert allowed(matcher, 20) == whole


def test_places_are_each_sequences_own(compiler: GrammarCompiler, ids: Ids) -> None:
    grammar = LLMatcher.grammar_from_regex("(ax|by)")
    first, second = (compiler.compile(grammar, (END,)).result(timeout=30) for _ in range(2))
    first.take(*ids("a"))
    assert allowed(first) == {*ids("x")}
    assert allowed(second) == {*ids("a"), *ids("b")}


def test_a_token_that_may_not_come_is_an_error_and_the_end(make: Callable[..., Matcher], ids: Ids) -> None:
    matcher, other = make("ab"), make("ab")
    assert matcher.take(*ids("x"))
    assert "cannot be followed" in (matcher.error or "")
    assert allowed(matcher) == {END}
    assert matcher.take(*ids("a"))
    assert other.error is None
    assert allowed(other) == {*ids("a")}


def test_limits_end_the_one_sequence(ids: Ids) -> None:
    """A text that needs too many states is an error that ends its sequence, and no other."""
    vocabulary = LLTokenizer(byte_level(), eos_token=[END])
    grammar = LLMatcher.grammar_from_regex("[ab]*a[ab]{12}")
    tight = LLMatcher(vocabulary, grammar, log_level=0, limits=LLParserLimits(max_lexer_states=40))
    assert not tight.is_error()
    matchers = [Matcher(made, {END}, {END}) for made in (tight, LLMatcher(vocabulary, grammar, log_level=0))]
    over = [matchers[0].take(token) for token in ids("ab" * 10) if allowed(matchers[0])]
    assert over == sorted(over)
    assert over[-1]
    assert "cannot be followed" in (matchers[0].error or "")
    assert allowed(matchers[0]) == {END}
    assert not matchers[1].take(*ids("a"))
    assert matchers[1].error is None
