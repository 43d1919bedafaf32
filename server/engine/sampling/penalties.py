"""Edits of single logits before the temperature: biases, bans, and penalties on tokens that were seen.

Work on the host is in the number of tokens of the rows that ask for it, never in the size of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...wire.messages import SamplingParams
from ..staging import Arrays
from .rows import SampleRow

Ids = NDArray[np.int64]


class Edits(NamedTuple):
    """The edits of all rows, on the device. A field is empty where no row has any, else tensors with an element each.

    biases: row, token (int64) and bias (float32). bans: row and token. penalties: row, token, what the logit is divided
    or multiplied by, and what is then taken off it (float32).
    """

    biases: Sequence[Tensor]
    bans: Sequence[Tensor]
    penalties: Sequence[Tensor]


def edits(
    biased: Mapping[int, SampleRow], banned: Mapping[int, SampleRow], penalized: Mapping[int, SampleRow], width: int
) -> list[Arrays]:
    """Collect the fields of `Edits`, on the host.

    biased, banned, penalized: the rows that have such edits, by their places in the step. width: of the logits. Ids are
    the client's: those out of range are left out, since on a GPU one would stop the process, not raise.
    """
    return [_biases(biased, width), _bans(banned, width), _penalties(penalized, width)]


def penalizes(params: SamplingParams) -> bool:
    """Return whether scores depend on the tokens before."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def edit(logits: Tensor, edits: Edits) -> Tensor:
    """Apply every row's own edits to logits (rows, vocab), in vLLM's order: bias, bans, penalties.

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
    """Apply Hugging Face's repetition penalty to tokens of prompt and output, then OpenAI's two to output tokens."""
    values = scores[row, token]
    values = torch.where(values > 0, values / repetition, values * repetition) - subtrahend
    scores.index_put_((row, token), values)


def _biases(rows: Mapping[int, SampleRow], width: int) -> Arrays:
    found = [(i, token, bias) for i, row in rows.items() for token, bias in row.params.logit_bias.items()]
    found = [entry for entry in found if 0 <= entry[1] < width]
    if not found:
        return []
    row, token, bias = zip(*found, strict=True)
    return [np.array(row, np.int64), np.array(token, np.int64), np.array(bias, np.float32)]


def _bans(rows: Mapping[int, SampleRow], width: int) -> Arrays:
    found = [(i, token) for i, row in rows.items() for token in row.banned_token_ids if 0 <= token < width]
    return list(np.array(found, np.int64).T) if found else []


def _penalties(rows: Mapping[int, SampleRow], width: int) -> Arrays:
    if not rows:
        return []
    row, token, count = _seen([*rows.values()], width)
    params = [row.params for row in rows.values()]
    repetition = np.array([p.repetition_penalty for p in params], np.float32)
    presence = np.array([p.presence_penalty for p in params], np.float64)
    frequency = np.array([p.frequency_penalty for p in params], np.float64)
    subtrahend = presence[row] * (count > 0) + frequency[row] * count
    places = np.array([*rows], np.int64)
    return [places[row], token, repetition[row], subtrahend.astype(np.float32)]


def _seen(rows: Sequence[SampleRow], width: int) -> tuple[Ids, Ids, Ids]:
    """List the tokens that a row's penalties touch. Returns row, token, and how often it is in the row's output."""
    outputs = [row.output_token_ids for row in rows]
    prompts = [row.prompt_token_ids if row.params.repetition_penalty != 1.0 else () for row in rows]
    # One sort for all: by row, then token, then whether it is of the prompt.
    found = np.sort(np.concatenate((2 * _places(outputs, width), 2 * _places(prompts, width) + 1)))
    place, is_output = found >> 1, 1 - (found & 1)
    firsts = np.flatnonzero(np.diff(place, prepend=-1))
    count = np.add.reduceat(is_output, firsts) if len(firsts) else is_output
    return place[firsts] // width, place[firsts] % width, count


def _places(token_ids: Sequence[Sequence[int]], width: int) -> Ids:
    """Return the place of each token in a flat (rows, width), without tokens that do not exist."""
    lengths = [len(ids) for ids in token_ids]
    tokens = np.fromiter(chain.from_iterable(token_ids), np.int64, sum(lengths))
    places = np.repeat(np.arange(len(lengths)) * width, lengths) + tokens
    exists = (tokens >= 0) & (tokens < width)
    return places if exists.all() else places[exists]
