"""A bound on the characters that one token can stand for, as far as a `tokenizer.json` proves one.

A text of more characters than a context of that many tokens can hold need not be encoded to be refused. Each part of a
tokenizer that may leave text out, or make one token of any amount of it, forbids the proof: what strips, collapses or
removes, an unknown token that swallows its neighbours. Then there is no bound here. Knows the file's format only.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from .detokenizer import byte_alphabet

Spec = Mapping[str, Any]

COMPOSED = 4  # characters at most of which Unicode's composition makes one: the longest canonical decomposition


def characters_per_token(tokenizer: str, normalize: Callable[[str], str]) -> int | None:
    """Return the most characters of a text that one of its tokens can stand for, or None if none is proved.

    tokenizer: the content of the file. normalize: the tokenizer's normalizer, for added tokens, which are looked for in
    normalized text too.
    """
    spec = json.loads(tokenizer)
    added: list[Spec] = spec.get("added_tokens") or []
    shrinks = _shrink(spec.get("normalizer"))
    if shrinks is None or any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None
    if not _keeps_all(spec.get("pre_tokenizer")) or not _spells_all(spec):
        return None
    contents = [token["content"] for token in added]
    tokens = [*_vocabulary(spec["model"]), *contents, *map(normalize, contents)]
    return shrinks * max(map(len, tokens), default=1)


def _vocabulary(model: Spec) -> list[str]:
    vocab = model.get("vocab") or []
    return list(vocab) if isinstance(vocab, Mapping) else [entry[0] for entry in vocab]


def _shrink(normalizer: Spec | None) -> int | None:
    """Return how many characters a normalizer may make one of; None if any number."""
    if normalizer is None:
        return 1
    how = _SHRINKS.get(normalizer["type"])
    return None if how is None else how(normalizer)


def _shrink_all(sequence: Spec) -> int | None:
    """Do what `_shrink` does for normalizers one after the other."""
    product = 1
    for step in sequence["normalizers"]:
        if (shrinks := _shrink(step)) is None:
            return None
        product *= shrinks
    return product


def _shrink_replaced(replace: Spec) -> int | None:
    """Do what `_shrink` does for a replaced string; what a regular expression matches has no bound."""
    pattern, content = replace["pattern"].get("String"), replace["content"]
    return None if not pattern or not content else -(-len(pattern) // len(content))


_SHRINKS: Mapping[str, Callable[[Spec], int | None]] = {
    "Sequence": _shrink_all,
    "Replace": _shrink_replaced,
    **dict.fromkeys(("NFC", "NFKC"), lambda step: COMPOSED),
    **dict.fromkeys(("NFD", "NFKD", "Lowercase", "Prepend", "ByteLevel"), lambda step: 1),
}


def _keeps_all(splitter: Spec | None) -> bool:
    """Return whether what splits a text into words keeps all of it."""
    if splitter is None:
        return True
    kind = splitter["type"]
    if kind == "Sequence":
        return all(map(_keeps_all, splitter["pretokenizers"]))
    if kind in ("Split", "Punctuation"):
        return bool(splitter.get("behavior") != "Removed")
    return kind in ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength")


def _spells_all(spec: Spec) -> bool:
    """Return whether the model finds tokens for each character, and not one token for many unknown ones."""
    model, vocabulary = spec["model"], set(_vocabulary(spec["model"]))
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        return model["type"] in ("BPE", "Unigram")
    if model["type"] != "BPE":
        return False
    if model.get("unk_token") is not None:
        return not model.get("fuse_unk")
    return _spells_bytes(spec) and byte_alphabet().keys() <= vocabulary


def _spells_bytes(spec: Spec) -> bool:
    """Return whether the model sees bytes in GPT-2's alphabet instead of text."""
    parts = [spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}]
    steps = [step for part in parts for step in part.get("normalizers") or part.get("pretokenizers") or [part]]
    return any(step.get("type") == "ByteLevel" for step in steps)
