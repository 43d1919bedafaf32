# mypy: disallow-untyped-decorators=False
"""The end of paged attention's kernel: turns the sums of a tile into outputs, after adding up those of split keys.

A sum is numerators, maxima and totals, in fp32:

    acc = sum over keys:  exp2(score - top) · value,    total = sum over keys:  exp2(score - top)
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)  # under all scores, and finite: what begins there needs no case of its own
COMBINED_ROWS = tl.constexpr(4)  # and splits that the last program adds up at a time
COMBINED_SPLITS = tl.constexpr(8)


@triton.jit
def combine(
    partial_ptr: tl.tensor,
    splits: tl.tensor,
    block: tl.tensor,
    row: tl.tensor,
    first: tl.tensor,
    num_queries: tl.tensor,
    kv_head: tl.tensor,
    out_ptr: tl.tensor,
    sinks_ptr: tl.tensor,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """Add up the splits for queries [block, block + COMBINED_ROWS) of an item.

    Loads bypass the first-level cache, since other programs have just stored these.
    """
    STRIDE: tl.constexpr = KV_HEADS * BLOCK_M * (VALUE_DIM + 2)
    m = block + tl.arange(0, COMBINED_ROWS)
    v_dim = tl.arange(0, BLOCK_V)
    real = first + m < num_queries
    top = tl.full((COMBINED_ROWS,), LOWEST, tl.float32)
    total = tl.zeros((COMBINED_ROWS,), tl.float32)
    acc = tl.zeros((COMBINED_ROWS, BLOCK_V), tl.float32)
    for start in range(0, splits, COMBINED_SPLITS):
        split = start + tl.arange(0, COMBINED_SPLITS)
        mask = (split < splits)[:, None] & real[None, :]
        partial = partial_ptr + split.to(tl.int64) * STRIDE
        rows = partial[:, None] + BLOCK_M * VALUE_DIM + m[None, :]
        tops = tl.load(rows, mask=mask, other=float("-inf"), cache_modifier=".cg")
        totals = tl.load(rows + BLOCK_M, mask=mask, other=0.0, cache_modifier=".cg")
        parts = tl.load(
            partial[:, None, None] + m[None, :, None] * VALUE_DIM + v_dim[None, None, :],
            mask=mask[:, :, None] & (v_dim < VALUE_DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_top = tl.maximum(top, tl.max(tops, 0))
        fade = tl.exp2(top - new_top)
        weights = tl.exp2(tops - new_top[None, :])
        total = total * fade + tl.sum(totals * weights, 0)
        acc = acc * fade[:, None] + tl.sum(parts * weights[:, :, None], 0)
        top = new_top
    finish(
        acc, total, top, row, first + m, num_queries, kv_head, out_ptr, sinks_ptr,
        SINKS, GROUP, KV_HEADS, VALUE_DIM, BLOCK_V,
    )  # fmt: skip


@triton.jit
def finish(
    acc: tl.tensor,
    total: tl.tensor,
    top: tl.tensor,
    row: tl.tensor,
    index: tl.tensor,
    num_queries: tl.tensor,
    kv_head: tl.tensor,
    out_ptr: tl.tensor,
    sinks_ptr: tl.tensor,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """out = acc / (total + the sink's weight), both relative to exp2(top); 0 for a query that sees no key."""
    head = kv_head * GROUP + index % GROUP
    v_dim = tl.arange(0, BLOCK_V)
    real = index < num_queries
    if SINKS:
        sink = tl.load(sinks_ptr + head, mask=real, other=0.0).to(tl.float32) * LOG2_E
        new_top = tl.maximum(top, sink)
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.exp2(sink - new_top)
        acc = acc * fade[:, None]
    result = acc * (1.0 / tl.where(total > 0, total, 1.0))[:, None]
    place = (row + index // GROUP).to(tl.int64) * (KV_HEADS * GROUP) + head
    out = out_ptr + place[:, None] * VALUE_DIM + v_dim[None, :]
    tl.store(out, result.to(out_ptr.dtype.element_ty), mask=real[:, None] & (v_dim < VALUE_DIM)[None, :])
