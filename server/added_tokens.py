"""Tokens that an adapter brings beside the base's, as they go into the base's tokenizer in every process."""

import hashlib
from collections.abc import Sequence

import msgspec
from tokenizers import AddedToken as FastAddedToken
from tokenizers import Tokenizer

_RULES = ("single_word", "lstrip", "rstrip", "normalized", "special")


class AddedToken(msgspec.Struct, frozen=True):
    """A token as `added_tokens` of a tokenizer.json has it."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


def add_tokens(tokenizer: Tokenizer, added: Sequence[AddedToken]) -> None:
    """Add tokens, in the order of their ids. Raises ValueError where one would get another id than it has."""
    for token in added:
        tokenizer.add_tokens([FastAddedToken(token.content, **{rule: getattr(token, rule) for rule in _RULES})])
        if tokenizer.token_to_id(token.content) != token.id:
            raise ValueError(f"token {token.id} is not the next one after the base's")


def key_of(added: Sequence[AddedToken]) -> str:
    """Return what tells one vocabulary from another, of all that have the same base; "" for the base's own."""
    return hashlib.sha256(msgspec.json.encode(added)).hexdigest() if added else ""
