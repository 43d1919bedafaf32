"""Log-probabilities to report: of the model's raw distribution, before any bias, penalty or temperature."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...wire.messages import Logprob, TokenLogprobs
from .. import staging

LOWEST = -9999.0
"""Reported for a probability of 0, as OpenAI does: JSON has no infinity."""

_CHUNK = 64
"""Rows handled at once: bounds the float32 copies of a long prompt's logits."""


class Scores(NamedTuple):
    """Log-probabilities in rows of logits: of one token each, and of the most likely ones.

    chosen: (rows,) float32 log-probability. rank: (rows,) int64, 1 plus the number of strictly likelier tokens.
    best: (rows, top) int64 ids of the most likely tokens, best first, equals by lowest id. best_logprobs: theirs,
    (rows, top) float32.
    """

    chosen: Tensor
    rank: Tensor
    best: Tensor
    best_logprobs: Tensor


class PendingLogprobs:
    """Reports that are on their way to the host. sound: (rows,) bool, whether a row's logits are numbers."""

    def __init__(self, token_ids: Sequence[int], sound: Tensor, scores: Scores) -> None:
        self._token_ids = token_ids
        self._returning = staging.Returning((sound, *scores))

    def result(self) -> list[TokenLogprobs] | None:
        """Return a report for each token, after waiting for all of them; None where the model gave no numbers."""
        sound, *scores = self._returning.result()
        return list(reports(self._token_ids, Scores(*scores))) if bool(sound.all()) else None


def start_prompt_logprobs(logits: Tensor, next_token_ids: Sequence[int], top: int) -> PendingLogprobs:
    """Report on `next_token_ids` under the rows of logits (n, vocab) that predict them, with `top` alternatives each.
    At least one row.

    Enqueues the work on the logits' device and waits for nothing.
    """
    ids = list(next_token_ids)
    [[on_device]] = staging.to_device([[np.array(ids, np.int64)]], logits.device)
    return PendingLogprobs(ids, logits.amax(dim=-1).isfinite(), score(logits, on_device, top))


def score(logits: Tensor, token_ids: Tensor, top: int) -> Scores:
    """Score `token_ids` (rows,) int64 under logits (rows, vocab), with `top` alternatives each. At least one row."""
    top = min(top, logits.shape[1])
    chunks = [_score(*pair, top) for pair in zip(logits.split(_CHUNK), token_ids.split(_CHUNK), strict=True)]
    return chunks[0] if len(chunks) == 1 else Scores(*map(torch.cat, zip(*chunks, strict=True)))


def reports(token_ids: Iterable[int], scores: Scores) -> Iterable[TokenLogprobs]:
    """Make of scores on the host what is sent to the API."""
    for token_id, logprob, rank, ids, values in zip(token_ids, *(column.tolist() for column in scores), strict=True):
        yield TokenLogprobs(Logprob(token_id, logprob, rank), _ranked(ids, values))


def _score(logits: Tensor, token_ids: Tensor, top: int) -> Scores:
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32).nan_to_num_(LOWEST, neginf=LOWEST)
    chosen = logprobs.gather(1, token_ids[:, None])
    if staging.is_host(logits.device):
        rank, best = _ranks_on_host(logprobs, chosen), _best_on_host(logprobs, top)
    else:
        rank, best = (logprobs > chosen).sum(dim=-1) + 1, _best(logprobs, top)
    return Scores(chosen.squeeze(1), rank, best, logprobs.gather(1, best))


def _best(logprobs: Tensor, top: int) -> Tensor:
    """Return the ids (rows, top) of the most likely tokens, equals by lowest id, which torch's own topk leaves open.

    Packs an order-preserving integer image of the value above the complement of the id, so that all keys differ.
    """
    bits = logprobs.view(torch.int32).to(torch.int64)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    complement = torch.arange(logprobs.shape[1] - 1, -1, -1, device=logprobs.device)
    keys = ((ordered << 32) + complement).topk(top).values
    return logprobs.shape[1] - 1 - (keys & 0xFFFFFFFF)


def _best_on_host(logprobs: Tensor, top: int) -> Tensor:
    """Return the same as `_best`. numpy partitions a row faster than torch on a CPU; what is left is sorted."""
    values = logprobs.numpy()
    best = np.empty((len(values), top), np.int64)
    if top:
        for row, last, ids in zip(values, np.partition(values, -top, axis=-1)[:, -top], best, strict=True):
            candidates = np.flatnonzero(row >= last)
            ids[:] = candidates[np.argsort(-row[candidates], kind="stable")[:top]]
    return torch.from_numpy(best)


def _ranks_on_host(logprobs: Tensor, chosen: Tensor) -> Tensor:
    pairs = zip(logprobs.numpy(), chosen.numpy(), strict=True)
    return torch.tensor([1 + np.count_nonzero(row > own) for row, own in pairs], dtype=torch.int64)


def _ranked(ids: list[int], values: list[float]) -> list[Logprob]:
    """Rank alternatives that are sorted by value; equal values share the rank of the first of them."""
    ranked: list[Logprob] = []
    for place, (token_id, value) in enumerate(zip(ids, values, strict=True), 1):
        tied = bool(ranked) and ranked[-1].logprob == value
        ranked.append(Logprob(token_id, value, ranked[-1].rank if tied else place))
    return ranked
