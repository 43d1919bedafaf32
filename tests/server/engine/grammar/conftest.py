"""Vocabularies whose tokens are bytes, with marks behind them."""

from collections.abc import Callable, Iterator

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from peftserve.server.engine.grammar.compiler import GrammarCompiler, Words

MARKS = ("<end>", "<turn>", "<pad>")  # token ids 256 to 258


def byte_level() -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in MARKS])
    return str(tokenizer.to_str())


@pytest.fixture(scope="session")
def ids() -> Callable[[str], list[int]]:
    """The token ids of a text, marks included."""
    tokenizer = Tokenizer.from_str(byte_level())
    return lambda text: list(tokenizer.encode(text).ids)


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(Words(byte_level(), (256,)))
    yield made
    made.close()
