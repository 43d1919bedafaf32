"""Likeness by the base's own hidden states: the mean over a text's tokens, at one layer.

The router has no model. It asks for what it lacks by raising VectorsNeeded, and finds it in the next query; vectors of
examples are kept, so they are computed once for each version of a route and process.

All hidden states of a language model lie in a narrow cone (Ethayarajh, "How Contextual are Contextualized Word
Representations?", 2019), where every cosine is near 1. So the middle of the candidates is subtracted first.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .query import Query, VectorKey, VectorsNeeded

AT_ONCE = 64  # texts asked for at a time: those that are there are kept, whatever becomes of the request

Vectors = NDArray[np.float32]


def nearest_states(texts_by_candidate: Sequence[Sequence[str]], layer: int | None) -> Callable[[Query], list[float]]:
    """Return a function that scores a request for each candidate. It raises VectorsNeeded.

    Examples are run as the prompt is, in the chat's template or without: what templates add would else tell most.
    """
    forms = {is_chat: NearestStates(texts_by_candidate, layer, is_chat) for is_chat in (False, True)}
    return lambda query: forms[query.is_chat].scores(query)


class NearestStates:
    """The examples' vectors, as far as they are known. For one thread at a time."""

    def __init__(self, texts_by_candidate: Sequence[Sequence[str]], layer: int | None, is_chat: bool = False) -> None:
        self._texts = texts_by_candidate
        self._layer = layer
        self._is_chat = is_chat
        self._known: dict[str, Vectors] = {}  # until all are
        self._examples: _Examples | None = None  # from then on

    def scores(self, query: Query) -> list[float]:
        """Return each candidate's cosine of the prompt to the nearest of its texts. Raises VectorsNeeded."""
        if not query.text().strip():
            return [0.0] * len(self._texts)
        if self._examples is None:
            self._learn(query)
        prompt = query.vectors.get(self._key(None))
        if self._examples is None or prompt is None:
            raise VectorsNeeded(self._missing(prompt is None))
        return self._examples.scores(np.asarray(prompt, np.float32))

    def _learn(self, query: Query) -> None:
        """Keep the texts' vectors that the query brings."""
        for of_one in self._texts:
            for text in of_one:
                vector = query.vectors.get(self._key(text))
                if vector is not None:
                    self._known[text] = np.asarray(vector, np.float32)
        if not self._unknown():
            self._examples = _Examples([np.stack([self._known[text] for text in of_one]) for of_one in self._texts])
            self._known = {}

    def _unknown(self) -> list[str]:
        return list(dict.fromkeys(text for of_one in self._texts for text in of_one if text not in self._known))

    def _missing(self, also_prompt: bool) -> list[VectorKey]:
        texts = [] if self._examples is not None else self._unknown()[:AT_ONCE]
        return [self._key(text) for text in [*([None] if also_prompt else []), *texts]]

    def _key(self, text: str | None) -> VectorKey:
        return VectorKey(self._layer, text, self._is_chat)


class _Examples:
    """All vectors of all candidates, ready for prompts. by_candidate: of each (texts, width), one text at least."""

    def __init__(self, by_candidate: Sequence[Vectors]) -> None:
        self._first_text = np.cumsum([0, *map(len, by_candidate)])[:-1]
        # A single candidate has no middle of others to tell it from.
        middles = np.stack([one.mean(0) for one in by_candidate])
        self._middle: Vectors = middles.mean(0) if len(by_candidate) > 1 else np.zeros_like(middles[0])
        self._vectors = _unit(np.concatenate(by_candidate) - self._middle)

    def scores(self, prompt: Vectors) -> list[float]:
        cosines = self._vectors @ _unit(prompt - self._middle)
        nearest: list[float] = np.clip(np.maximum.reduceat(cosines, self._first_text), -1, 1).tolist()
        return nearest


def _unit(vectors: Vectors) -> Vectors:
    """Return the vectors of the last axis divided by their lengths; those of length 0 as they are."""
    lengths = np.sqrt((vectors * vectors).sum(-1, keepdims=True), dtype=np.float32)
    units: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return units
