# mypy: disallow-untyped-decorators=False
"""The argmax of each row in Triton, for CUDA and ROCm: one launch, one pass. Oracle: `argmax.py`."""

import torch
import triton
import triton.language as tl

from .argmax import Best

BLOCK = 8192
"""Numbers that a program reads at once: with a load for each thread in flight, what keeps one multiprocessor busy."""

WARPS = 16


@triton.jit
def argmax_kernel(
    rows_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    highest_ptr: tl.tensor,
    row_stride: tl.tensor,
    columns: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """ids[i] = the least j with rows[i, j] = max over k of rows[i, k] that are no NaN; 0 if all are
    highest[i] = max over k of rows[i, k]; NaN if any of them is

    rows: (rows, columns) floating, contiguous but for `row_stride` numbers between rows. ids: (rows,) int64.
    highest: (rows,) float32. A program for each row. Every lane keeps the best of its own columns, the first of equals;
    the lanes are compared at the end.
    """
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_id = lanes
    nans = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, columns, BLOCK):
        ids = begin + lanes
        numbers = tl.load(rows_ptr + row * row_stride + ids, mask=ids < columns, other=float("-inf")).to(tl.float32)
        is_better = numbers > best  # which no NaN is
        best = tl.where(is_better, numbers, best)
        best_id = tl.where(is_better, ids, best_id)
        nans = tl.where(numbers != numbers, 1, nans)
    highest = tl.max(best, axis=0)
    first = tl.min(tl.where(best == highest, best_id, columns), axis=0)
    tl.store(ids_ptr + row, first.to(tl.int64))
    tl.store(highest_ptr + row, tl.where(tl.max(nans, axis=0) > 0, float("nan"), highest))


def triton_argmax_ids(rows: torch.Tensor) -> Best:
    """Return the same as `argmax_ids`."""
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    ids = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    highest = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    if len(rows):
        argmax_kernel[(len(rows),)](rows, ids, highest, rows.stride(0), rows.shape[1], BLOCK=BLOCK, num_warps=WARPS)
    return Best(ids, highest)
