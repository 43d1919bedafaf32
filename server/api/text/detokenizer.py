"""Tokens to text, one at a time. Text that was shown never changes, and no half of a character is shown.

Two ways. A byte-level tokenizer maps each token to bytes, so an incremental UTF-8 decoder is exact. For any other, the
tokenizer decodes a short window: what the last shown tokens look like alone, and with the new ones behind them.
Both take time linear in the number of tokens.
"""

import codecs
from collections.abc import Callable, Iterable, Set
from typing import Protocol

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
LONGEST_HOLD = 16  # tokens of a run that is no text at all; four bytes make the longest character

Decode = Callable[[list[int]], str]


class Detokenizer(Protocol):
    """The text of one sequence, as its tokens come."""

    def push(self, token_id: int) -> str:
        """Take a token, and return the text that it completes."""

    def flush(self) -> str:
        """Return the text that is left when no more tokens come; a broken character is U+FFFD."""


class ByteLevelDetokenizer:
    """A detokenizer that decodes bytes as UTF-8.

    token_bytes: returns the bytes of a token, or b"" for one that is not shown.

    texts: text of the tokens that are whole characters, shared by all detokenizers of the same `token_bytes`, which
    fill it: between whole characters, such a token is its text and nothing is left to decode.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], texts: dict[int, str]) -> None:
        self._token_bytes = token_bytes
        self._texts = texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._inside = False  # a character has begun and not ended

    def push(self, token_id: int) -> str:
        if not self._inside and (text := self._texts.get(token_id)) is not None:
            return text
        return self._decode(token_id)

    def flush(self) -> str:
        return self._decoder.decode(b"", True)

    def _decode(self, token_id: int) -> str:
        content = self._token_bytes(token_id)
        whole = not self._inside
        text = self._decoder.decode(content)
        self._inside = bool(self._decoder.getstate()[0])
        if whole and not self._inside and text.encode() == content:
            self._texts[token_id] = text
        return text


class WindowDetokenizer:
    """A detokenizer that decodes a window of the newest tokens.

    decode: returns the text of all tokens that it is given. hidden: ids of tokens that are not shown.
    """

    def __init__(self, decode: Decode, hidden: Set[int]) -> None:
        self._decode = decode
        self._hidden = hidden
        self._shown: list[int] = []  # the tokens that were shown last: context for the decoder
        self._shown_text = ""
        self._new: list[int] = []

    def push(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        self._new.append(token_id)
        text = self._decode(self._shown + self._new)
        if text.endswith(REPLACEMENT) and len(self._new) < LONGEST_HOLD:
            return ""
        return self._show(text)

    def flush(self) -> str:
        return self._show(self._decode(self._shown + self._new)) if self._new else ""

    def _show(self, text: str) -> str:
        shown = text[len(self._shown_text) :]
        if shown or len(self._new) >= LONGEST_HOLD:
            self._shown, self._new = self._new, []
            self._shown_text = self._decode(self._shown)
        return shown


def byte_alphabet() -> dict[str, int]:
    """Return the printable characters that stand for bytes in byte-level vocabularies (GPT-2's), with the bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


class TokenBytes:
    """A table of the bytes that tokens stand for, in either scheme of vocabularies, filled as tokens are seen."""

    def __init__(self, tokenizer: Tokenizer, byte_level: bool) -> None:
        self._tokenizer = tokenizer
        self._alphabet = byte_alphabet() if byte_level else {}
        self._seen: dict[int, bytes] = {}

    def __call__(self, token_id: int) -> bytes:
        known = self._seen.get(token_id)
        if known is None:
            known = self._seen[token_id] = self._find(token_id)
        return known

    def _find(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        return self._byte_level(token) if self._alphabet else _sentencepiece(token)

    def _byte_level(self, token: str) -> bytes:
        if all(character in self._alphabet for character in token):
            return bytes(self._alphabet[character] for character in token)
        return token.encode()  # an added token with a blank or another character that the alphabet lacks


def _sentencepiece(token: str) -> bytes:
    """Return the bytes of a token in SentencePiece's scheme: U+2581 for blanks, `<0xE4>` for single bytes."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def detokenize(detokenizer: Detokenizer, token_ids: Iterable[int]) -> str:
    """Return the text of all tokens at once."""
    return "".join([*map(detokenizer.push, token_ids), detokenizer.flush()])
