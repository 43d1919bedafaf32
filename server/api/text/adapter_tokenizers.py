"""The tokenizers of adapters with words of their own, made when one is first used and kept while they are."""

import asyncio
import logging
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from peftserve.adapters.errors import AdapterDamaged

from ...wire.messages import ModelInfo
from ..engine.in_flight import InFlight
from .own_words import BaseWords, OwnWords, WordsReader
from .tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MOST_KNOWN = 4096  # adapters whose words are remembered
MOST_KEPT = 8  # tokenizers, of some 10 to 200 MB

K = TypeVar("K")
V = TypeVar("V")


class Speech(NamedTuple):
    """How one who answers reads and writes. eos_token_ids: as `AddRequest` has them."""

    tokenizer: Tokenizer
    eos_token_ids: list[int] | None = None


class AdapterTokenizers:
    """The tokenizers of one process's adapters, for one event loop.

    store: holds a folder for each digest. base: the base's. templates: whether adapters' own templates are taken.
    """

    def __init__(self, store: Path, base: Tokenizer, info: ModelInfo, templates: bool) -> None:
        self._store = store
        self._base = base
        self._info = info
        words = BaseWords(info.vocab_size, base.vocabulary, base.chat_template, base.special_tokens)
        self._reader = WordsReader(words, templates)
        self._known: OrderedDict[str, tuple[OwnWords, int]] = OrderedDict()
        self._kept: OrderedDict[tuple[OwnWords, int], Tokenizer] = OrderedDict()
        self._reading: InFlight[tuple[OwnWords, int]] = InFlight()
        self._making: InFlight[Tokenizer] = InFlight()

    async def of(self, digest: str, size: int) -> Speech:
        """Return how an adapter reads and writes; it has to be held meanwhile. size: of its vocabulary.

        Raises AdapterDamaged where its files cannot be read.
        """
        found = self._known.get(digest)
        words, size = found or await self._reading.run(digest, lambda: self._read(digest, size))
        spoken = words.spoken
        tokenizer = self._base
        if any(spoken) or size > self._info.vocab_size:
            key = spoken, size
            kept = self._kept.get(key)
            tokenizer = kept or await self._making.run(key, lambda: self._make(spoken, size))
            _use(self._kept, key, tokenizer, MOST_KEPT)
        ends = sorted({*self._info.eos_token_ids, *words.ends}) if words.ends else None
        return Speech(tokenizer, ends)

    async def _read(self, digest: str, size: int) -> tuple[OwnWords, int]:
        try:
            words = await asyncio.to_thread(self._reader.read, self._store / digest, size)
        except OSError as error:
            logger.error("the words of adapter %s cannot be read: %s", digest, error)
            raise AdapterDamaged("the adapter's tokenizer files cannot be read on the server") from error
        found = words, max(size, self._info.vocab_size) if words.added else self._info.vocab_size
        _use(self._known, digest, found, MOST_KNOWN)
        return found

    async def _make(self, words: OwnWords, size: int) -> Tokenizer:
        info = msgspec.structs.replace(
            self._info,
            vocab_size=size,
            special_tokens={**self._base.special_tokens, **dict(words.special)},
            chat_template=words.template or self._base.chat_template,
        )
        whose = "model" if words.template is None else "adapter"
        try:
            return await asyncio.to_thread(Tokenizer, info, words.added, whose)
        except ValueError as error:
            logger.warning("the tokenizer of an adapter is left aside: %s", error)
            return self._base


def _use(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Note that an entry is used now, and forget those that have not been for longest."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
