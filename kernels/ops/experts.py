"""Low-rank terms inside a mixture of experts, as their formula reads.

Rows are pairs of a token and an expert that it is sent to, those of one token adjoining.
"""

import torch

GATHERED_ELEMENTS = 1 << 24  # of factors gathered for pairs at a time: bounds the memory of long segments


def add_expert_low_rank_(
    y: torch.Tensor, x: torch.Tensor, experts: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weight: float
) -> None:
    """`y[i] += weight · b[experts[i]] (a[experts[i]] x[i])`, in place.

    x: (pairs, in). y: (pairs, out). experts: (pairs,). a: (experts, rank, in). b: (experts, out, rank).
    """
    at_once = max(GATHERED_ELEMENTS // max(a[0].numel(), b[0].numel()), 1)
    for start in range(0, x.shape[0], at_once):
        rows = slice(start, start + at_once)
        h = torch.bmm(a[experts[rows]], x[rows, :, None])
        y[rows].add_(torch.bmm(b[experts[rows]], h)[..., 0], alpha=weight)
