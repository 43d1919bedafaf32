"""The token with the highest score of each row."""

import torch
from torch import Tensor

from peftserve.kernels.sampling.argmax import Best, argmax_ids, naive_argmax_ids

from .. import staging


def take_best(scores: Tensor) -> Tensor:
    """Return the ids (rows,) int64 of the highest scores: the lowest id of equals, and a NaN's if there is one.

    scores: (rows, vocab) of any floating dtype.
    """
    if not staging.is_host(scores.device):
        return scores.argmax(dim=-1)
    # On a CPU numpy compares many numbers at once where torch compares one.
    return torch.from_numpy(scores.to(torch.float32).numpy().argmax(axis=-1))


def best_numbers(logits: Tensor) -> Best:
    """Return the ids of the highest logits, NaNs aside (0 in a row of NaNs alone), and the highest, NaN if any is.

    logits: (rows, vocab) of any floating dtype. An infinity counts as the highest number. Each number is read once.
    """
    if not staging.is_host(logits.device):
        return argmax_ids(logits)
    best = take_best(logits)
    highest = logits.gather(1, best[:, None]).squeeze(1).to(torch.float32)
    return naive_argmax_ids(logits) if bool(highest.isnan().any()) else Best(best, highest)
