"""Which tokens stay in the draw: min-p, then top-k, then top-p on what is left, each row with its own.

Every cut is a threshold on a row's values, and tokens equal to the threshold stay. So the outcome depends neither on
how a sort breaks ties, which are common in bfloat16, nor on what else is in the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...wire.messages import SamplingParams

_NUCLEUS_GUESS = 512
"""Tokens sorted for top-p at first. Most nuclei are smaller, and to sort a whole vocabulary costs many times more."""


def truncated_probabilities(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """scores: (rows, vocab) float32, divided by the temperature; overwritten.

    Returns (rows, vocab) float32: probabilities, 0 for the tokens cut off; after top-p they sum to less than 1.
    """
    if any(p.min_p > 0.0 for p in params):
        _cut_min_p(scores, torch.tensor([p.min_p for p in params]).to(scores.device))
    if any(p.top_k > 0 for p in params):
        _cut_top_k(scores, [p.top_k for p in params])
    probabilities = torch.softmax(scores, dim=-1)
    if any(p.top_p < 1.0 for p in params):
        _cut_top_p(probabilities, torch.tensor([p.top_p for p in params], dtype=torch.float64).to(scores.device))
    return probabilities


def _cut_min_p(scores: Tensor, min_p: Tensor) -> None:
    """Drop the tokens less likely than `min_p` (rows,) times the most likely one."""
    floor = scores.amax(dim=-1) + min_p.log()
    scores.masked_fill_(scores < floor[:, None], -torch.inf)


def _cut_top_k(scores: Tensor, top_k: list[int]) -> None:
    """Drop the tokens below the k-th highest score; k = 0 leaves a row as it is."""
    ks = [min(k, scores.shape[1]) for k in top_k]
    k = torch.tensor(ks).to(scores.device)[:, None]
    kth = scores.topk(max(ks)).values.gather(1, (k - 1).clamp(min=0))
    scores.masked_fill_((scores < kth) & (k > 0), -torch.inf)


def _cut_top_p(probabilities: Tensor, top_p: Tensor) -> None:
    """Zero the tokens outside the smallest set of most likely ones that holds a mass of `top_p` (rows,) float64."""
    floor, short = _nucleus_floor(probabilities, top_p, min(_NUCLEUS_GUESS, probabilities.shape[1]))
    if short.any():
        floor[short] = _nucleus_floor(probabilities[short], top_p[short], probabilities.shape[1])[0]
    probabilities.masked_fill_(probabilities < floor[:, None], 0.0)


def _nucleus_floor(probabilities: Tensor, top_p: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    """The probability of each nucleus's last token, and whether `num_best` tokens were too few to find it."""
    best = probabilities.topk(num_best).values
    mass = best.cumsum(dim=-1, dtype=torch.float64)
    size = (mass - best < top_p[:, None]).sum(dim=-1).clamp(min=1)
    floor = best.gather(1, size[:, None] - 1).squeeze(1)
    return torch.where(top_p < 1.0, floor, 0.0), (top_p < 1.0) & (mass[:, -1] < top_p)
