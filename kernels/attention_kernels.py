# mypy: disallow-untyped-decorators=False
"""Paged attention in Triton, for CUDA and ROCm: one launch a layer, whatever the step. Oracle: `naive_attention.py`.

    out[row, h] = sum over seen keys j:  softmax(cap(scale · query[h, row] · key[j]), sinks[h]) · value[j]

The grid is as many programs as the device runs at once, whatever the step is. They share out units, from the lists of
`attention_plan.py` in device memory, so that a captured launch serves any step. A unit is one kv head of an item: of
some of a sequence's queries, over some of the keys that they see. Queries are numbered token · group + head, so that
one tile holds all query heads that read the same keys, and several tokens of a prefill.

An item of keys that are split gives a partial sum. Whichever program arrives last adds them all up, in the order of
the keys: no unit waits, and the same step gives the same bits. Sums and softmax run in fp32.

    partial sums   fp32, for each slot and kv head: numerators (BLOCK_M, value_dim), maxima (BLOCK_M), sums (BLOCK_M)
"""

import triton
import triton.language as tl

HEADER = tl.constexpr(2)  # int32 fields of each plan's header: first item, items
ITEM = tl.constexpr(10)  # int32 fields of each item
LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)  # under all scores, and finite: what begins there needs no case of its own
COMBINED_ROWS = tl.constexpr(4)  # and splits that the last program adds up at a time
COMBINED_SPLITS = tl.constexpr(8)


@triton.jit(do_not_specialize=["plan"])
def attention_kernel(
    query_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    sinks_ptr: tl.tensor,
    out_ptr: tl.tensor,
    list_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    counters_ptr: tl.tensor,
    head_stride: tl.tensor,
    row_stride: tl.tensor,
    plan: tl.tensor,
    scale: tl.tensor,
    SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """query: (heads, rows, KEY_DIM) of these strides. out: (rows, heads, VALUE_DIM). sinks: (heads,) if SINKS.

    keys, values: (pages, PAGE_SIZE, KV_HEADS, dim). counters: int32, one for each slot and kv head, all 0 before and
    after. BLOCK_M: queries of an item. BLOCK_N: keys at a time. BLOCK_K, BLOCK_V: powers of two from the dims on.
    """
    factor = (scale if SOFTCAP is None else SOFTCAP) * LOG2_E
    header = list_ptr + plan * HEADER
    items = list_ptr + tl.load(header)
    num_units = tl.load(header + 1) * KV_HEADS
    for unit in range(tl.program_id(0), num_units, tl.num_programs(0)):
        item = items + unit // KV_HEADS * ITEM
        kv_head = unit % KV_HEADS
        row = tl.load(item)
        first = tl.load(item + 1)
        num_queries = tl.load(item + 2)
        context = tl.load(item + 3)
        pages = list_ptr + tl.load(item + 4)
        start = tl.load(item + 5)
        stop = tl.load(item + 6)
        splits = tl.load(item + 7)

        index = first + tl.arange(0, BLOCK_M)
        token = index // GROUP
        head = kv_head * GROUP + index % GROUP
        position = context + token
        k_dim = tl.arange(0, BLOCK_K)
        v_dim = tl.arange(0, BLOCK_V)
        query = tl.load(
            query_ptr + (row + token).to(tl.int64)[:, None] * row_stride + head[:, None] * head_stride + k_dim[None, :],
            mask=(index < num_queries)[:, None] & (k_dim < KEY_DIM)[None, :],
            other=0.0,
        )
        top = tl.full((BLOCK_M,), LOWEST, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
        for key_start in range(start, stop, BLOCK_N):
            key = key_start + tl.arange(0, BLOCK_N)
            there = key < stop
            if WINDOW is not None:  # what lies before the first query's window may be any page
                there &= key > context + first // GROUP - WINDOW
            page = tl.load(pages + key // PAGE_SIZE, mask=there, other=0)
            place = (page.to(tl.int64) * PAGE_SIZE + key % PAGE_SIZE) * KV_HEADS + kv_head
            keys = tl.load(
                keys_ptr + place[:, None] * KEY_DIM + k_dim[None, :],
                mask=there[:, None] & (k_dim < KEY_DIM)[None, :],
                other=0.0,
            )
            values = tl.load(
                values_ptr + place[:, None] * VALUE_DIM + v_dim[None, :],
                mask=there[:, None] & (v_dim < VALUE_DIM)[None, :],
                other=0.0,
            )
            scores = tl.dot(query, tl.trans(keys), input_precision="ieee")
            if SOFTCAP is not None:  # tanh(x) = 1 - 2 / (exp(2x) + 1)
                scores = 1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2_E * scale / SOFTCAP)) + 1.0)
            seen = key[None, :] <= position[:, None]
            if WINDOW is not None:
                seen &= key[None, :] > position[:, None] - WINDOW
            scores = tl.where(seen, scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1) * factor)
            weights = tl.exp2(scores * factor - new_top[:, None])
            fade = tl.exp2(top - new_top)
            total = total * fade + tl.sum(weights, 1)
            acc = tl.dot(weights.to(values.dtype), values, acc * fade[:, None], input_precision="ieee")
            top = new_top

        if splits == 1:
            _finish(
                acc, total, top, row, index, num_queries, kv_head, out_ptr, sinks_ptr,
                SINKS, GROUP, KV_HEADS, VALUE_DIM, BLOCK_V,
            )  # fmt: skip
        else:
            SIZE: tl.constexpr = BLOCK_M * (VALUE_DIM + 2)
            slot = tl.load(item + 8) * KV_HEADS + kv_head
            m = tl.arange(0, BLOCK_M)
            partial = partial_ptr + (slot + tl.load(item + 9) * KV_HEADS).to(tl.int64) * SIZE
            real = index < num_queries
            tl.store(
                partial + m[:, None] * VALUE_DIM + v_dim[None, :],
                acc,
                mask=real[:, None] & (v_dim < VALUE_DIM)[None, :],
            )
            tl.store(partial + BLOCK_M * VALUE_DIM + m, top, mask=real)
            tl.store(partial + BLOCK_M * (VALUE_DIM + 1) + m, total, mask=real)
            tl.debug_barrier()  # all of the program's stores come before its arrival
            if tl.atomic_add(counters_ptr + slot, 1, sem="acq_rel") == splits - 1:
                tl.store(counters_ptr + slot, 0)
                for block in range(0, tl.minimum(BLOCK_M, num_queries - first), COMBINED_ROWS):
                    _combine(
                        partial_ptr + slot.to(tl.int64) * SIZE, splits, block, row, first, num_queries, kv_head,
                        out_ptr, sinks_ptr, SINKS, GROUP, KV_HEADS, VALUE_DIM, BLOCK_M, BLOCK_V,
                    )  # fmt: skip


@triton.jit
def _combine(
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
    """Queries [block, block + COMBINED_ROWS) of an item. Past the first-level cache: others have just stored these."""
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
    _finish(
        acc, total, top, row, first + m, num_queries, kv_head, out_ptr, sinks_ptr,
        SINKS, GROUP, KV_HEADS, VALUE_DIM, BLOCK_V,
    )  # fmt: skip


@triton.jit
def _finish(
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


@triton.jit
def write_kernel(
    key_ptr: tl.tensor,
    value_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    position_ptr: tl.tensor,
    key_head_stride: tl.tensor,
    key_row_stride: tl.tensor,
    value_head_stride: tl.tensor,
    value_row_stride: tl.tensor,
    KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """keys[position[row]] = key[:, row] and values likewise, for each row but those whose position is -1.

    key: (KV_HEADS, rows, KEY_DIM) of these strides. keys: (positions, KV_HEADS, KEY_DIM). A program for each row and
    BLOCK elements.
    """
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(position_ptr + row).to(tl.int64)
    if position >= 0:
        index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = index < KV_HEADS * KEY_DIM
        key = key_ptr + row * key_row_stride + index // KEY_DIM * key_head_stride + index % KEY_DIM
        tl.store(keys_ptr + position * (KV_HEADS * KEY_DIM) + index, tl.load(key, mask=mask), mask=mask)
        mask = index < KV_HEADS * VALUE_DIM
        value = value_ptr + row * value_row_stride + index // VALUE_DIM * value_head_stride + index % VALUE_DIM
        tl.store(values_ptr + position * (KV_HEADS * VALUE_DIM) + index, tl.load(value, mask=mask), mask=mask)
