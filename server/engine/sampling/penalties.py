"""What moves single logits before the temperature: biases, bans, and penalties on tokens that were seen.

Work on the host is in the number of tokens of the rows that ask for it, never in the size of the vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...wire.messages import SamplingParams
from .rows import SampleRow

Ids = NDArray[np.int64]
Arrays = list[NDArray[Any]]


class Edits(NamedTuple):
    """Of all rows, on the device. Each is empty where no row has any, else tensors with an element for each edit.

    biases: row, token (int64) and bias (float32). bans: row and token. penalties: row, token, what the logit is divided
    or multiplied by, and what is then taken off it (float32).
    """

    biases: Sequence[Tensor]
    bans: Sequence[Tensor]
    penalties: Sequence[Tensor]


def edits(rows: Sequence[SampleRow], width: int) -> list[Arrays]:
    """The members of `Edits`, on the host.

    width: of the logits. Ids are the client's: on a GPU one that is out of range would stop the process, not raise.
    """
    return [_biases(rows, width), _bans(rows, width), _penalties(rows, width)]


def edit(logits: Tensor, edits: Edits) -> Tensor:
    """The logits (rows, vocab) with every row's own edits, in vLLM's order: bias, bans, penalties.

    Returns `logits` itself when no row edits anything, else a float32 copy.
    """
    if not any(edits):
        return logits
    scores = logits.to(torch.float32, copy=True)
    if edits.biases:
        _add_biases(scores, *edits.biases)
    if edits.bans:
        scores.index_put_(tuple(edits.bans), scores.new_full((), -torch.inf))
    if edits.penalties:
        _penalize(scores, *edits.penalties)
    return scores


def _add_biases(scores: Tensor, row: Tensor, token: Tensor, bias: Tensor) -> None:
    scores.index_put_((row, token), scores[row, token] + bias)


def _penalize(scores: Tensor, row: Tensor, token: Tensor, repetition: Tensor, subtrahend: Tensor) -> None:
    """Hugging Face's repetition penalty on tokens of prompt and output, then OpenAI's two on those of the output."""
    values = scores[row, token]
    values = torch.where(values > 0, values / repetition, values * repetition) - subtrahend
    scores.index_put_((row, token), values)


def _biases(rows: Sequence[SampleRow], width: int) -> Arrays:
    found = [(i, token, bias) for i, row in enumerate(rows) for token, bias in row.params.logit_bias.items()]
    found = [entry for entry in found if 0 <= entry[1] < width]
    if not found:
        return []
    row, token, bias = zip(*found, strict=True)
    return [np.array(row, np.int64), np.array(token, np.int64), np.array(bias, np.float32)]


def _bans(rows: Sequence[SampleRow], width: int) -> Arrays:
    found = [(i, token) for i, row in enumerate(rows) for token in row.banned_token_ids if 0 <= token < width]
    return list(np.array(found, np.int64).T) if found else []


def _penalties(rows: Sequence[SampleRow], width: int) -> Arrays:
    penalized = [i for i, row in enumerate(rows) if _penalizes(row.params)]
    if not penalized:
        return []
    seen = [_seen(rows[i], width) for i in penalized]
    repeats = [len(tokens) for tokens, _ in seen]
    tokens = np.concatenate([tokens for tokens, _ in seen])
    return [np.repeat(penalized, repeats), tokens, *_amounts(rows, penalized, seen, repeats)]


def _penalizes(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _seen(row: SampleRow, width: int) -> tuple[Ids, Ids]:
    """Distinct tokens that the row's penalties touch, and how often each is in the output."""
    tokens, counts = np.unique(np.asarray(row.output_token_ids, np.int64), return_counts=True)
    if row.params.repetition_penalty != 1.0:
        prompt = np.unique(np.asarray(row.prompt_token_ids, np.int64))
        prompt = np.setdiff1d(prompt, tokens, assume_unique=True)
        tokens = np.concatenate((tokens, prompt))
        counts = np.concatenate((counts, np.zeros_like(prompt)))
    exists = (tokens >= 0) & (tokens < width)
    return tokens[exists], counts[exists]


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
