"""Draw a token for each row of probabilities, by the row's uniform number."""

import torch
from torch import Tensor


def draw(probabilities: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw by the inverse of the distribution function.

    probabilities: (rows, vocab) float32, of any sum. uniform: (rows,) float64 in [0, 1).

    Returns (rows,) float64: the total, not finite where there is no distribution; and (rows,) int64: the token, of no
    meaning there. Tokens are laid along [0, total) in the order of their ids, and each row's uniform number falls on
    one. A token of probability 0 has no length there. Sums are float64, so that no device's order of summing shows.
    """
    ends = probabilities.cumsum(dim=-1, dtype=torch.float64)
    total = ends[:, -1]
    # A uniform is at most 1 - 2^-53, for which the product rounds below the total: some end lies beyond it.
    point = uniform * total
    return total, torch.searchsorted(ends, point[:, None], right=True).squeeze(1)
