"""Text to tokens and back, by the `tokenizer.json` that the engine sends.

Knows nothing of requests; everything a client can get wrong is an `ApiError`.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from tokenizers import Tokenizer as FastTokenizer

from ...added_tokens import AddedToken, add_tokens
from ...wire.messages import ModelInfo
from ..http.errors import bad_request
from .chat_template import ChatTemplate
from .detokenizer import ByteLevelDetokenizer, Detokenizer, TokenBytes, WindowDetokenizer, detokenize
from .length_bound import characters_per_token
from .long_texts import LONG_TEXT, LongTexts

# One thread for a text: the library's own would be one a core, and the engine has work for those.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MAX_CHARACTERS = 1 << 21  # of one text, in a second or two and half a gigabyte while they are encoded
PORTION = 1 << 15  # characters of several texts that are encoded together


class Tokenizer:
    """The tokenizer of one model. A model without one takes token ids only, and answers with ids and no text.

    added: tokens beyond those of the model's own file, in the order of their ids. whose: template it is, in errors.
    most_characters: the longest text that is encoded. most_in_context: the longest that may fit the model's context.
    """

    def __init__(self, info: ModelInfo, added: Sequence[AddedToken] = (), whose: str = "model") -> None:
        self.vocab_size = info.vocab_size
        self.chat_template = info.chat_template
        self.special_tokens: Mapping[str, str] = info.special_tokens
        self._fast = FastTokenizer.from_str(info.tokenizer) if info.tokenizer is not None else None
        self.added = tuple(added)
        if self._fast is not None:
            add_tokens(self._fast, added)
        self._byte_level = info.tokenizer is not None and _is_byte_level(info.tokenizer)
        self._special_ids = _special_ids(self._fast)
        self._token_bytes = TokenBytes(self._fast, self._byte_level) if self._fast is not None else None
        self._long_texts = LongTexts()
        self._chat = (
            ChatTemplate(info.chat_template, info.special_tokens, self._long_texts, whose)
            if info.chat_template is not None
            else None
        )
        self.most_characters = max(MAX_CHARACTERS, 16 * info.max_model_len)
        per_token = (
            characters_per_token(info.tokenizer, _normalizer(self._fast)) if info.tokenizer is not None else None
        )
        if per_token is not None:
            per_token = max(per_token, *(len(token.content) for token in added), 0)
        self.most_in_context = min(self.most_characters, (per_token or self.most_characters) * info.max_model_len)
        self._texts: dict[frozenset[int], dict[int, str]] = {}  # by the tokens that are hidden
        self._hidden: dict[frozenset[str], frozenset[int]] = {frozenset(): self._special_ids}  # by those shown anyway

    @property
    def has_text(self) -> bool:
        """Return whether the model has a tokenizer."""
        return self._fast is not None

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return a text's tokens. Raises ApiError 400 without a tokenizer and for a text that is too long; 429."""
        return (await self.encode_all([text], add_special_tokens))[0]

    async def encode_all(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Do what `encode` does for many texts, which together may be long. All are checked before one is encoded."""
        for text in texts:
            self._check(text)
        if texts and sum(map(len, texts)) < LONG_TEXT:
            return self._encode(texts, add_special_tokens)
        encoded: list[list[int]] = []
        for portion in _portions(texts):
            work = partial(self._encode, portion, add_special_tokens)
            encoded += await self._long_texts.run(sum(map(len, portion)), work)
        return encoded

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of tokens; "" without a tokenizer."""
        return detokenize(self.detokenizer(skip_special_tokens), token_ids)

    async def decode_long(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Do what `decode` does, for any number of tokens. Raises ApiError 429."""
        return await self._long_texts.run(len(token_ids), lambda: self.decode(token_ids, skip_special_tokens))

    def detokenizer(self, skip_special_tokens: bool = True, shown: frozenset[str] = frozenset()) -> Detokenizer:
        """Return a new detokenizer, for one sequence. shown: special tokens that are shown though others are not."""
        hidden = self._hidden_but(shown) if skip_special_tokens else frozenset()
        fast, table = self._fast, self._token_bytes
        if fast is None or table is None:
            return WindowDetokenizer(lambda ids: "", frozenset())
        if self._byte_level:
            texts = self._texts.setdefault(hidden, {})
            return ByteLevelDetokenizer(lambda token_id: b"" if token_id in hidden else table(token_id), texts)
        return WindowDetokenizer(lambda ids: fast.decode(ids, skip_special_tokens=False), hidden)

    def vocabulary(self) -> dict[str, int]:
        """Return token to id, with added tokens; empty without a tokenizer."""
        return {} if self._fast is None else self._fast.get_vocab(with_added_tokens=True)

    def special_id(self, token: str) -> int | None:
        """Return the id of a special token; None for a text that is none."""
        token_id = self._fast.token_to_id(token) if self._fast is not None else None
        return token_id if token_id in self._special_ids else None

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token by itself; b"" without a tokenizer."""
        return self._token_bytes(token_id) if self._token_bytes is not None else b""

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Return tokens as the vocabulary spells them; "" for ids that are not in it. Raises ApiError 429."""
        return await self._long_texts.run(len(token_ids), lambda: [self._spell(token_id) for token_id in token_ids])

    def require_chat_template(self) -> ChatTemplate:
        """Return what renders chats as the model's prompts. Raises ApiError 400 for a model that has no template."""
        if self._chat is None:
            raise bad_request(
                "This model has no chat template; use /v1/completions with a prompt.", code="no_chat_template"
            )
        return self._chat

    def _hidden_but(self, shown: frozenset[str]) -> frozenset[int]:
        if shown not in self._hidden:
            self._hidden[shown] = self._special_ids - {self.special_id(token) for token in shown}
        return self._hidden[shown]

    def _check(self, text: str) -> None:
        if self._fast is None:
            raise bad_request("This model has no tokenizer; send the prompt as a list of token ids.", "prompt")
        if len(text) > self.most_characters:
            raise bad_request(
                f"The text has {len(text)} characters; this server encodes at most {self.most_characters}.",
                "prompt",
                "text_too_long",
            )

    def _encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        """Return the tokens of each text, by the library's call for many, which releases the interpreter's lock."""
        assert self._fast is not None
        try:
            encodings = self._fast.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeError):  # half a surrogate pair, through a template's argument
            raise bad_request("The text is not valid Unicode.", "prompt") from None
        return [encoding.ids for encoding in encodings]

    def _spell(self, token_id: int) -> str:
        return (self._fast.id_to_token(token_id) if self._fast is not None else None) or ""


def _portions(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts in order, many short ones at a time, so that other work comes between portions."""
    portion: list[str] = []
    length = 0
    for text in texts:
        if portion and length + len(text) > PORTION:
            yield portion
            portion, length = [], 0
        portion.append(text)
        length += len(text) + 1
    if portion:
        yield portion


def _normalizer(fast: FastTokenizer | None) -> Callable[[str], str]:
    normalizer = None if fast is None else fast.normalizer
    return str if normalizer is None else normalizer.normalize_str


def _special_ids(fast: FastTokenizer | None) -> frozenset[int]:
    if fast is None:
        return frozenset()
    return frozenset(i for i, token in fast.get_added_tokens_decoder().items() if token.special)


def _is_byte_level(tokenizer: str) -> bool:
    """Return whether the decoder is GPT-2's byte alphabet and nothing else."""
    decoder = json.loads(tokenizer).get("decoder") or {}
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    return [step.get("type") for step in steps] == ["ByteLevel"]
