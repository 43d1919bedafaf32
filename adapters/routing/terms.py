"""The terms of a text, as numbers: what TF-IDF counts.

They are words, pairs of neighbouring words, and the pieces of 3 to 5 characters of each word with a blank at both ends,
so that endings and misspellings are near, too. In scripts without blanks each character is a word; a symbol, such as an
emoji or a currency sign, is one as well; punctuation separates. Texts are compared in Unicode's compatible composed
form (NFKC) and casefolded.

A term is kept as a hash of 64 bits, this process's own: terms are never stored or sent.
"""

import re
import unicodedata
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

MAX_CHARACTERS = 4096  # that are read of a text; of a longer one the first and the last half of them

_ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # written without blanks between words
_WORD = regex.compile(rf"[{_ALONE}]|[[\p{{L}}\p{{M}}\p{{N}}_]--[{_ALONE}]]+|\p{{S}}", regex.V1)
_ASCII_WORD = re.compile(r"[a-z0-9_]+|[$+<=>^`|~]")  # finds in ASCII what the other finds, three times as fast
_PIECES = (3, 4, 5)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, and as good as random


class Terms(NamedTuple):
    """The terms of one text. hashes: (n,) uint64, each once, in order. counts: (n,), how often each is there."""

    hashes: NDArray[np.uint64]
    counts: NDArray[np.intp]


def terms_of(text: str) -> Terms:
    """Return the terms of a text; none where it has no words."""
    words = words_of(text)
    return Terms(*np.unique(np.concatenate([*_whole(words), *_pieces(words)]), return_counts=True))


def words_of(text: str) -> list[str]:
    """Return the words of a text in the form in which they are compared."""
    folded = _read(unicodedata.normalize("NFKC", _read(text)).casefold())  # again: one character may become 18
    words: list[str] = (_ASCII_WORD if folded.isascii() else _WORD).findall(folded)
    return words


def _read(text: str) -> str:
    half = MAX_CHARACTERS // 2
    return text if len(text) <= MAX_CHARACTERS else f"{text[:half]} {text[-half:]}"


def _whole(words: list[str]) -> list[NDArray[np.uint64]]:
    """Return the hashes of all words, and of all pairs."""
    hashes = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    return [hashes, hashes[:-1] * _FACTOR + hashes[1:]]


def _pieces(words: list[str]) -> list[NDArray[np.uint64]]:
    """Return the hashes of all pieces, of each size by itself: those that have a blank at their ends only."""
    line = np.frombuffer(f" {' '.join(words)} ".encode("utf-32-le"), np.uint32)
    codes, letter = line.astype(np.uint64), line != ord(" ")
    hashes, inside, found = codes[:-1] * _FACTOR + codes[1:], letter[1:], []
    for size in _PIECES:
        hashes = hashes[:-1] * _FACTOR + codes[size - 1 :]
        found.append(hashes[inside[:-1]])
        inside = inside[:-1] & letter[size - 1 :]
    return found
