"""The highest score of each row."""

import torch
from torch import Tensor

from .. import staging


def take_best(scores: Tensor) -> Tensor:
    """scores: (rows, vocab) of any floating dtype. Returns (rows,) int64: the lowest id of equals; of a NaN, if any."""
    if not staging.is_host(scores.device):
        return scores.argmax(dim=-1)
    # On a CPU numpy compares many numbers at once where torch compares one.
    return torch.from_numpy(scores.to(torch.float32).numpy().argmax(axis=-1))


def take_best_number(logits: Tensor) -> Tensor:
    """The same, NaNs aside; an infinity counts as the highest number. 0 in a row of NaNs."""
    return take_best(logits.nan_to_num(nan=-torch.inf))
