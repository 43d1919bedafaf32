"""SGLang's `moe_align_block_size` in torch: its own is CUDA C++ that is compiled when it is first called.

`triton_v2` makes its route with it once a step. Routes are not timed, and what it makes is the same.
"""

import torch


def align(
    ids: torch.Tensor,
    num_buckets: int,
    block: int,
    sorted_rows: torch.Tensor,
    block_ids: torch.Tensor,
    num_padded: torch.Tensor,
    *_: object,
    **__: object,
) -> None:
    """Sort rows by bucket, with each bucket beginning at the start of a block.

    ids: (rows,), -1 for rows without adapter, which are the first bucket; id i is bucket i + 1. sorted_rows: row
    numbers, and the number of rows in padding. block_ids: each block's id, -1 where it has none. num_padded: rows with
    padding.
    """
    buckets = ids.long() + 1
    counts = torch.bincount(buckets, minlength=num_buckets)
    blocks = (counts + block - 1) // block
    order = buckets.argsort(stable=True)
    sorted_buckets = buckets[order]
    within = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[sorted_buckets]
    starts = (blocks.cumsum(0) - blocks) * block
    sorted_rows.fill_(len(ids))
    sorted_rows[starts[sorted_buckets] + within] = order.to(sorted_rows.dtype)
    owners = torch.repeat_interleave(torch.arange(num_buckets, device=ids.device), blocks) - 1
    block_ids.fill_(-1)
    block_ids[: len(owners)] = owners.to(block_ids.dtype)
    num_padded[0] = len(owners) * block
