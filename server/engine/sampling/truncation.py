"""Which tokens stay in the draw: min-p, then top-k, then top-p on what is left, each row with its own.

Every cut is a threshold on a row's values, and tokens equal to the threshold stay. So the outcome depends neither on
how a sort breaks ties, which are common in bfloat16, nor on what else is in the batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...wire.messages import SamplingParams
from .nucleus import nucleus_floors

Arrays = list[NDArray[Any]]


class Cuts(NamedTuple):
    """Of all rows, on the device. Each is empty where no row cuts so, else one tensor (rows,).

    min_p: float32. top_k: int64, 0 is off. top_p: float64. max_k: the highest of top_k.
    """

    min_p: Sequence[Tensor]
    top_k: Sequence[Tensor]
    top_p: Sequence[Tensor]
    max_k: int


def cuts(params: Sequence[SamplingParams]) -> list[Arrays]:
    """The members of `Cuts` but the last, on the host."""
    min_p = [np.array([p.min_p for p in params], np.float32)] if any(p.min_p > 0.0 for p in params) else []
    top_k = [np.array([p.top_k for p in params], np.int64)] if any(p.top_k > 0 for p in params) else []
    top_p = [np.array([p.top_p for p in params], np.float64)] if any(p.top_p < 1.0 for p in params) else []
    return [min_p, top_k, top_p]


def truncated_probabilities(scores: Tensor, cuts: Cuts) -> Tensor:
    """scores: (rows, vocab) float32, divided by the temperature; overwritten.

    Returns (rows, vocab) float32: probabilities, 0 for the tokens cut off; after top-p they sum to less than 1.
    """
    if cuts.min_p:
        _cut_min_p(scores, cuts.min_p[0])
    if cuts.top_k:
        _cut_top_k(scores, cuts.top_k[0], cuts.max_k)
    probabilities = torch.softmax(scores, dim=-1)
    if cuts.top_p:
        floors = nucleus_floors(probabilities, cuts.top_p[0])
        probabilities.masked_fill_(probabilities < floors[:, None], 0.0)
    return probabilities


def _cut_min_p(scores: Tensor, min_p: Tensor) -> None:
    """Drop the tokens less likely than `min_p` (rows,) times the most likely one."""
    floor = scores.amax(dim=-1) + min_p.log()
    scores.masked_fill_(scores < floor[:, None], -torch.inf)


def _cut_top_k(scores: Tensor, top_k: Tensor, max_k: int) -> None:
    """Drop the tokens below the k-th highest score; k = 0 leaves a row as it is."""
    best = scores.topk(min(max_k, scores.shape[1])).values
    kth = best.gather(1, (top_k[:, None] - 1).clamp(min=0, max=best.shape[1] - 1))
    scores.masked_fill_((scores < kth) & (top_k[:, None] > 0), -torch.inf)
