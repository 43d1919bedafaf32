"""What moves single logits before the temperature: biases, bans, and penalties on tokens that were seen.

Work on the host is in the number of tokens of the rows that ask for it, never in the size of the vocabulary.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...wire.messages import SamplingParams
from .rows import SampleRow

Ids = NDArray[np.int64]


def edit(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """The logits (rows, vocab) with every row's own edits, in vLLM's order: bias, bans, penalties.

    Returns `logits` itself when no row edits anything, else a float32 copy.
    """
    if not any(_edits(row) for row in rows):
        return logits
    scores = logits.to(torch.float32, copy=True)
    _add_biases(scores, rows)
    _ban(scores, rows)
    _penalize(scores, rows)
    return scores


def _edits(row: SampleRow) -> bool:
    return bool(row.params.logit_bias or row.banned_token_ids) or _penalizes(row.params)


def _penalizes(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _add_biases(scores: Tensor, rows: Sequence[SampleRow]) -> None:
    biases = [(i, token, bias) for i, row in enumerate(rows) for token, bias in row.params.logit_bias.items()]
    at, values = _located(scores, biases)
    scores.index_put_(at, values, accumulate=True)


def _ban(scores: Tensor, rows: Sequence[SampleRow]) -> None:
    bans = [(i, token, -math.inf) for i, row in enumerate(rows) for token in row.banned_token_ids]
    at, values = _located(scores, bans)
    scores.index_put_(at, values)


def _located(scores: Tensor, entries: list[tuple[int, int, float]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Entries of (row, token, value) as an index into `scores` and values, without tokens that do not exist.

    Ids are the client's: on a GPU one that is out of range would stop the process, not raise.
    """
    entries = [entry for entry in entries if 0 <= entry[1] < scores.shape[1]]
    at = torch.tensor([entry[:2] for entry in entries], dtype=torch.int64).view(-1, 2).to(scores.device)
    values = torch.tensor([entry[2] for entry in entries], dtype=torch.float32).to(scores.device)
    return (at[:, 0], at[:, 1]), values


def _penalize(scores: Tensor, rows: Sequence[SampleRow]) -> None:
    """Hugging Face's repetition penalty on tokens of prompt and output, then OpenAI's two on those of the output."""
    penalized = [i for i, row in enumerate(rows) if _penalizes(rows[i].params)]
    if not penalized:
        return
    seen = [_seen(rows[i], scores.shape[1]) for i in penalized]
    repeats = [len(tokens) for tokens, _ in seen]
    row, token = (torch.from_numpy(a).to(scores.device) for a in _index(penalized, seen, repeats))
    repetition, subtrahend = torch.from_numpy(_amounts(rows, penalized, seen, repeats)).to(scores.device)
    values = scores[row, token]
    values = torch.where(values > 0, values / repetition, values * repetition) - subtrahend
    scores.index_put_((row, token), values)


def _seen(row: SampleRow, vocab_size: int) -> tuple[Ids, Ids]:
    """Distinct tokens that the row's penalties touch, and how often each is in the output."""
    tokens, counts = np.unique(np.asarray(row.output_token_ids, np.int64), return_counts=True)
    if row.params.repetition_penalty != 1.0:
        prompt = np.unique(np.asarray(row.prompt_token_ids, np.int64))
        prompt = np.setdiff1d(prompt, tokens, assume_unique=True)
        tokens = np.concatenate((tokens, prompt))
        counts = np.concatenate((counts, np.zeros_like(prompt)))
    exists = tokens < vocab_size
    return tokens[exists], counts[exists]


def _index(penalized: list[int], seen: list[tuple[Ids, Ids]], repeats: list[int]) -> Ids:
    """(2, entries): the row and the token of each penalty."""
    return np.stack((np.repeat(penalized, repeats), np.concatenate([tokens for tokens, _ in seen])))


def _amounts(
    rows: Sequence[SampleRow], penalized: list[int], seen: list[tuple[Ids, Ids]], repeats: list[int]
) -> NDArray[np.float32]:
    """(2, entries): what each logit is divided or multiplied by, and what is then taken off it."""
    params = [rows[i].params for i in penalized]
    repetition, presence, frequency = (
        np.repeat(np.array(values, np.float64), repeats)
        for values in (
            [p.repetition_penalty for p in params],
            [p.presence_penalty for p in params],
            [p.frequency_penalty for p in params],
        )
    )
    counts = np.concatenate([count for _, count in seen])
    return np.stack((repetition, presence * (counts > 0) + frequency * counts)).astype(np.float32)
