"""Truncation of the distribution: min-p, then top-k, then top-p on what is left, each row with its own values.

Every cut is a threshold on a row's values, and tokens equal to the threshold stay. So the outcome depends neither on
how a sort breaks ties, which are common in bfloat16, nor on what else is in the batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import staging
from .nucleus import nucleus_floors


class Cuts(NamedTuple):
    """The thresholds of all rows, on the device. A field is empty where no row cuts so, else one tensor (rows,).

    min_p: float32. top_k: int64, 0 is off. top_p: float64. max_k: the highest of top_k.
    """

    min_p: Sequence[Tensor]
    top_k: Sequence[Tensor]
    top_p: Sequence[Tensor]
    max_k: int


def cuts(min_p: NDArray[np.float32], top_k: NDArray[np.int64], top_p: NDArray[np.float64]) -> list[staging.Arrays]:
    """Collect the fields of `Cuts` but the last, on the host. min_p, top_k, top_p: (rows,)."""
    asked = (min_p, bool((min_p > 0.0).any())), (top_k, bool((top_k > 0).any())), (top_p, bool((top_p < 1.0).any()))
    return [[column.copy()] if used else [] for column, used in asked]


def truncated_probabilities(scores: Tensor, cuts: Cuts) -> Tensor:
    """Turn scores into probabilities, without the tokens that are cut off.

    scores: (rows, vocab) float32, divided by the temperature; overwritten. Returns (rows, vocab) float32, 0 for tokens
    that are cut off. After top-p the sum of a row is less than 1.
    """
    if cuts.min_p:
        _cut_min_p(scores, cuts.min_p[0])
    if cuts.top_k:
        _cut_top_k(scores, cuts.top_k[0], cuts.max_k)
    probabilities = torch.softmax(scores, dim=-1)
    if cuts.top_p:
        _drop_below(nucleus_floors(probabilities, cuts.top_p[0]), probabilities, 0.0)
    return probabilities


def _cut_min_p(scores: Tensor, min_p: Tensor) -> None:
    """Drop the tokens less likely than `min_p` (rows,) times the most likely one."""
    _drop_below(scores.amax(dim=-1) + min_p.log(), scores, -torch.inf)


def _cut_top_k(scores: Tensor, top_k: Tensor, max_k: int) -> None:
    """Drop the tokens below the k-th highest score; k = 0 leaves a row as it is."""
    _drop_below(torch.where(top_k > 0, _kth_highest(scores, top_k, max_k), -torch.inf), scores, -torch.inf)


def _kth_highest(scores: Tensor, k: Tensor, max_k: int) -> Tensor:
    """Return the k-th highest scores (rows,): the lowest where there are fewer than k, the highest where k is 0."""
    num_best = min(max_k, scores.shape[1])
    if staging.is_host(scores.device):  # where numpy compares many numbers at once
        best = torch.from_numpy(np.partition(scores.numpy(), -num_best, axis=-1)[:, -num_best:])
        best = best.sort(dim=-1, descending=True).values
    else:
        best = scores.topk(num_best).values
    return best.gather(1, (k[:, None] - 1).clamp(min=0, max=num_best - 1)).squeeze(1)


def _drop_below(floors: Tensor, values: Tensor, replacement: float) -> None:
    """Overwrite the values that are less than their row's floor; a NaN is not less."""
    if not staging.is_host(values.device):
        values.masked_fill_(values < floors[:, None], replacement)
        return
    # With one number as the threshold a CPU compares many at once, and drops what is not above it.
    for row, floor in zip(values, np.nextafter(floors.numpy(), -np.inf, dtype=np.float32).tolist(), strict=True):
        torch.threshold_(row, floor, replacement)
