"""TF-IDF over example texts: how like each of several groups of texts a prompt is. No model; numpy only.

Weights are the usual ones (Salton & Buckley, "Term-weighting approaches in automatic text retrieval", 1988), smoothed
as in scikit-learn: (1 + ln tf) · (1 + ln((1 + n) / (1 + df))), over n texts, each text's vector scaled to length 1.
What no example has is not in the vocabulary and does not count, so a keyword is found in a long prompt, too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .terms import Terms, terms_of

_NO_TERM = np.array([np.iinfo(np.uint64).max], np.uint64)


class TfidfIndex:
    """Examples by candidate, ready for prompts. Immutable, so any thread may ask it.

    The weights of a prompt are looked up for every term of every text in one go. So the examples decide what a prompt
    costs, about 2 us for a thousand of their terms, and the terms of the prompt add little.
    """

    def __init__(self, texts_by_candidate: Sequence[Sequence[str]]) -> None:
        """Index the texts. One without words is like no prompt; so is a candidate without texts."""
        found = [[terms_of(text) for text in texts or ("",)] for texts in texts_by_candidate]
        self._first_text = np.cumsum([0, *map(len, found)])[:-1]  # of each candidate
        texts = [terms for of_one in found for terms in of_one]
        columns = self._learn(texts)
        sizes = [len(terms.hashes) for terms in texts]
        weights = _unit_rows(np.concatenate([[], *map(_tf, texts)]) * self._idf[columns], sizes)
        # Each text begins with an entry of no weight: numpy sums up no empty rows.
        starts = np.cumsum([0, *sizes])[:-1]
        self._columns = np.insert(columns, starts, 0)
        self._weights = np.insert(weights, starts, 0).astype(np.float32)
        self._first_entry = starts + np.arange(len(texts))  # of each text

    def _learn(self, texts: Sequence[Terms]) -> NDArray[np.intp]:
        """Set the vocabulary and its weights. Returns the columns of all terms, text by text.

        The last of the vocabulary is no term, so that what is searched for always has a place.
        """
        hashes = np.concatenate([_NO_TERM, *(terms.hashes for terms in texts)])
        self._vocabulary, columns = np.unique(hashes, return_inverse=True)
        columns = columns[1:]
        df = np.bincount(columns, minlength=len(self._vocabulary))
        self._idf = 1 + np.log((1 + len(texts)) / (1 + df))
        return columns

    def scores(self, prompt: str) -> list[float]:
        """Return each candidate's cosine of the prompt to the nearest of its texts, from 0 to 1."""
        if not len(self._first_text):
            return []
        products = self._query(terms_of(prompt)).take(self._columns, mode="clip")  # unchecked: none is out of range
        products *= self._weights
        cosines = np.add.reduceat(products, self._first_entry)
        nearest: list[float] = np.minimum(np.maximum.reduceat(cosines, self._first_text), 1.0).tolist()
        return nearest

    def _query(self, terms: Terms) -> NDArray[np.float32]:
        """Return a prompt's vector of length 1, (columns,); 0 where no text has any of its terms."""
        columns = np.searchsorted(self._vocabulary, terms.hashes)
        known = self._vocabulary[columns] == terms.hashes
        columns = columns[known]
        weights = _tf(terms)[known] * self._idf[columns]
        query = np.zeros(len(self._vocabulary), np.float32)
        query[columns] = weights / np.sqrt(weights @ weights) if len(weights) else 0
        return query


def _tf(terms: Terms) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = 1 + np.log(terms.counts)
    return weights


def _unit_rows(values: NDArray[np.float64], sizes: Sequence[int]) -> NDArray[np.float64]:
    """Return rows of these sizes, which lie one behind the other, each divided by its length."""
    rows = np.repeat(np.arange(len(sizes)), sizes)
    lengths = np.sqrt(np.bincount(rows, values**2, len(sizes)))
    scaled: NDArray[np.float64] = values / lengths[rows]
    return scaled
