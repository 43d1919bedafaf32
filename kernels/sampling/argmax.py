"""The argmax of each row without NaNs: the greedy token of each row of logits. On a GPU each number is read once."""

from collections.abc import Iterable
from typing import NamedTuple

import torch


class Best(NamedTuple):
    """The best of each row. ids: (rows,) int64, where it is. highest: (rows,) float32, the number; NaN if any is."""

    ids: torch.Tensor
    highest: torch.Tensor


def argmax_ids(rows: torch.Tensor) -> Best:
    """Return the best of each row, on the same device, without waiting for it.

        ids[i] = the least j with rows[i, j] = max over k of rows[i, k] that are no NaN; 0 if all are
        highest[i] = max over k of rows[i, k]; NaN if any of them is

    rows: (rows, columns) of any floating dtype.
    """
    if not rows.is_cuda:
        return naive_argmax_ids(rows)
    from .triton_argmax import triton_argmax_ids  # not on machines without a GPU, which need no triton

    return triton_argmax_ids(rows)


def naive_argmax_ids(rows: torch.Tensor) -> Best:
    """Return the same in plain torch, on any device, in some passes."""
    ids = rows.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argmax(dim=-1)
    return Best(ids, rows.amax(dim=-1).to(torch.float32))


def warm_up(device: torch.device, dtypes: Iterable[torch.dtype], columns: int) -> None:
    """Compile the kernels for rows of so many columns, and of one more, so that no step has to wait for it."""
    if device.type == "cuda":
        for dtype in dtypes:
            for width in (columns, columns + 1):  # rows that begin at whole multiples of 16 numbers, and others
                argmax_ids(torch.zeros(1, width, dtype=dtype, device=device))
