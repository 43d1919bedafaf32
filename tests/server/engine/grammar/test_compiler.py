"""Compilation beside the step loop: what is kept, what is refused, and whose vocabulary it is over."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer, models

from peftserve.server.added_tokens import AddedToken
from peftserve.server.engine.grammar import compiler as module
from peftserve.server.engine.grammar.compiler import GrammarCompiler, InvalidGrammar, Words

END = 256


def grammar(regex: str) -> str:
    return str(LLMatcher.grammar_from_regex(regex))


def compiled(compiler: GrammarCompiler, text: str, *added: AddedToken) -> Any:
    return compiler.compile(text, (END,), added).result(timeout=30)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The grammars that have been compiled, in order."""
    done = list[str]()
    compile_one = module._compile

    def noted(vocabulary: Future[Any], text: str) -> LLMatcher:
        done.append(text)
        return compile_one(vocabulary, text)

    monkeypatch.setattr(module, "_compile", noted)
    return done


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start: other", "other"),
        ("{", "cannot be compiled"),
        ("", "cannot be compiled"),
        ("start: /(/", "cannot be compiled"),
    ],
)
def test_what_cannot_be_compiled_is_refused_and_nothing_else_is(
    compiler: GrammarCompiler, text: str, message: str
) -> None:
    for _ in range(2):  # from what is kept, too
        with pytest.raises(InvalidGrammar, match=message) as error:
            compiled(compiler, text)
        assert len(str(error.value)) < 1100
    assert compiled(compiler, grammar("a")).error is None


def test_the_same_grammar_is_compiled_once_for_many_threads(compiler: GrammarCompiler, compilations: list[str]) -> None:
    texts, futures = [grammar(f"a{{{i}}}") for i in range(1, 9)], list[Future[Any]]()
    for _ in range(4):
        futures += [compiler.compile(text, (END,)) for text in texts]
    matchers = [future.result(timeout=30) for future in futures]
    assert sorted(compilations) == sorted(texts)
    assert len({id(matcher) for matcher in matchers}) == len(matchers)


def test_matchers_are_driven_from_two_threads_at_once(compiler: GrammarCompiler) -> None:
    """All of one compiled grammar, whose lexer they may share."""
    text = grammar("([a-z]+[0-9]{2,3} )*")
    letters = [compiled(compiler, text) for _ in range(2)]
    masks = np.zeros((2, 300, 9), np.int32)

    def drive(place: int) -> None:
        for step in range(300):
            letters[place].fill(masks[place, step])
            allowed = np.flatnonzero(np.unpackbits(masks[place, step].view(np.uint8), bitorder="little"))
            letters[place].take(int(allowed[(7 * step) % max(len(allowed) - 1, 1)]))

    threads = [threading.Thread(target=drive, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [matcher.error for matcher in letters] == [None, None]
    assert masks.any(axis=2).all()
    np.testing.assert_array_equal(masks[0], masks[1])


def test_the_least_recently_used_is_forgotten(
    compiler: GrammarCompiler, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 2)
    a, b, c = (grammar(letter) for letter in "abc")
    for text in (a, b, a, c, a, b):
        compiled(compiler, text)
    assert compilations == [a, b, c, b]


def test_what_has_reached_a_limit_is_compiled_anew_for_the_next(
    compiler: GrammarCompiler, compilations: list[str], ids: Callable[[str], list[int]]
) -> None:
    text = grammar("ab")
    first = compiled(compiler, text)
    assert not first.take(ids("a")[0])
    assert first.take(ids("a")[0])  # which the grammar has not there: no error is another to a matcher
    assert first.error is not None
    assert compiled(compiler, text).error is None
    assert compilations == [text, text]


def test_each_vocabulary_has_grammars_of_its_own(
    compiler: GrammarCompiler, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A special token is named by a grammar; any other is text, which the vocabulary has in one token then."""
    text, own, word = "start: <own> /a/", AddedToken(259, "<own>", special=True), AddedToken(259, "bcd")
    assert _allowed(compiled(compiler, text, own)) == [259]
    with pytest.raises(InvalidGrammar, match="own"):
        compiled(compiler, text)
    assert compilations == [text, text]
    monkeypatch.setattr(module, "MOST_VOCABULARIES", 1)
    for added in ([word], [own]):  # made again once it has been forgotten
        assert (259 in _allowed(compiled(compiler, grammar("bcd+"), *added))) == (added == [word])


def _allowed(matcher: Any) -> list[int]:
    mask = np.zeros(9, np.int32)
    matcher.fill(mask)
    return list(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")))


def test_a_model_without_a_tokenizer_that_serves_says_so() -> None:
    with pytest.raises(InvalidGrammar, match="no tokenizer"):
        compiled(GrammarCompiler(None), grammar("a"))
    odd = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")).to_str()
    compiler = GrammarCompiler(Words(odd, ()))
    with pytest.raises(InvalidGrammar, match="byte-level"):
        compiled(compiler, grammar("a"))
    compiler.close()
