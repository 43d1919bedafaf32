# mypy: disallow-untyped-decorators=False
"""Paged attention in Triton, for CUDA and ROCm: one launch a layer, whatever the step. Oracle: `../reference.py`.

    out[row, h] = sum over seen keys j:  softmax(cap(scale · query[h, row] · key[j]) + bias[h, j], sinks[h]) · value[j]

The grid is as many programs as the device runs at once, whatever the step is. They share out units, from the lists of
`../plan.py` in device memory, so that a captured launch serves any step. A unit is one kv head of an item: of
some of a sequence's queries, over some of the keys that they see. Queries are numbered token · group + head, so that
one tile holds all query heads that read the same keys, and several tokens of a prefill.

Where WRITES, each span of the step is one row, and its key and value are not in the cache yet. Nobody but its own
queries sees them: the unit that has the span's last keys takes them from where the layer's products left them, adds
their share, and stores them in the cache.

An item of keys that are split gives a partial sum. Whichever program arrives last adds them all up, in the order of
the keys: no unit waits, and the same step gives the same bits. Sums and softmax run in fp32.

    partial sums   fp32, for each slot and kv head: numerators (BLOCK_M, value_dim), maxima (BLOCK_M), sums (BLOCK_M)
"""

import triton
import triton.language as tl

from .sums import COMBINED_ROWS, LOG2_E, LOWEST, combine, finish

HEADER = tl.constexpr(2)  # int32 fields of each plan's header: first item, items
ITEM = tl.constexpr(10)  # int32 fields of each item


@triton.jit(do_not_specialize=["plan"])
def attention_kernel(
    query_ptr: tl.tensor,
    key_ptr: tl.tensor,
    value_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    sinks_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    list_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    counters_ptr: tl.tensor,
    head_stride: tl.tensor,
    row_stride: tl.tensor,
    key_head_stride: tl.tensor,
    key_row_stride: tl.tensor,
    value_head_stride: tl.tensor,
    value_row_stride: tl.tensor,
    bias_stride: tl.tensor,
    plan: tl.tensor,
    scale: tl.tensor,
    WRITES: tl.constexpr,
    SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BIASED: tl.constexpr,
    WINDOW: tl.constexpr,
    RESTARTS: tl.constexpr,
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
    """Attend for each unit of a plan's list, one after the other.

    query: (heads, rows, KEY_DIM) of these strides. out: (rows, heads, VALUE_DIM). sinks: (heads,) if SINKS. bias: fp32
    (heads, positions) if BIASED, rows bias_stride apart. key, value: (KV_HEADS, rows, dim) of the step, of their
    strides; read if WRITES. keys, values: (pages, PAGE_SIZE, KV_HEADS,
    dim). counters: int32, one for each slot and kv head, all 0 before and after. BLOCK_M: queries of an item. BLOCK_N:
    keys at a time. BLOCK_K, BLOCK_V: powers of two, no less than the dims.
    """
    factor = (scale if SOFTCAP is None else SOFTCAP) * LOG2_E
    unit = LOG2_E / factor
    header = list_ptr + plan * HEADER
    items = list_ptr + tl.load(header)
    num_units = tl.load(header + 1) * KV_HEADS
    for number in range(tl.program_id(0), num_units, tl.num_programs(0)):
        item = items + number // KV_HEADS * ITEM
        kv_head = number % KV_HEADS
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
        if WRITES:  # asked for before the keys of the cache, and looked at after them
            own = (start < stop) & (stop > context)
            new_key = tl.load(
                key_ptr + row.to(tl.int64) * key_row_stride + kv_head * key_head_stride + k_dim,
                mask=k_dim < tl.where(own, KEY_DIM, 0),
                other=0.0,
            )
            new_value = tl.load(
                value_ptr + row.to(tl.int64) * value_row_stride + kv_head * value_head_stride + v_dim,
                mask=v_dim < tl.where(own, VALUE_DIM, 0),
                other=0.0,
            )
            # Of the unit's last key: it brings the line in which the loop finds its first pages as well.
            last_page = tl.load(pages + tl.maximum(stop - 1, 0) // PAGE_SIZE)
            stop = tl.minimum(stop, context)
        for key_start in range(start, stop, BLOCK_N):
            key = key_start + tl.arange(0, BLOCK_N)
            there = key < stop
            if WINDOW is not None:  # what lies before the first query's window may be any page
                there &= key >= _oldest(context + first // GROUP, WINDOW, RESTARTS)
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
            scores = _bent(tl.dot(query, tl.trans(keys), input_precision="ieee"), scale, SOFTCAP)
            if BIASED:  # in what the scores are in: they are multiplied by the factor
                here = (index < num_queries)[:, None] & there[None, :]
                scores += tl.load(bias_ptr + head[:, None] * bias_stride + key[None, :], mask=here, other=0.0) * unit
            seen = key[None, :] < stop if WRITES else key[None, :] <= position[:, None]
            if WINDOW is not None:
                seen &= key[None, :] >= _oldest(position, WINDOW, RESTARTS)[:, None]
            scores = tl.where(seen, scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1) * factor)
            weights = tl.exp2(scores * factor - new_top[:, None])
            fade = tl.exp2(top - new_top)
            total = total * fade + tl.sum(weights, 1)
            acc = tl.dot(weights.to(values.dtype), values, acc * fade[:, None], input_precision="ieee")
            top = new_top

        if WRITES:  # noqa: SIM102 - known to the compiler, where the next is not
            if own:
                score = tl.sum(query.to(tl.float32) * new_key.to(tl.float32)[None, :], 1)
                score = _bent(score, scale, SOFTCAP) * factor
                if BIASED:
                    own_bias = bias_ptr + head * bias_stride + context
                    score += tl.load(own_bias, mask=index < num_queries, other=0.0) * LOG2_E
                new_top = tl.maximum(top, score)
                fade = tl.exp2(top - new_top)
                weight = tl.exp2(score - new_top)
                total = total * fade + weight
                acc = acc * fade[:, None] + weight[:, None] * new_value.to(tl.float32)[None, :]
                top = new_top
                if first == 0:  # of the tiles of a group that is wider than one, the first
                    new_place = (last_page.to(tl.int64) * PAGE_SIZE + context % PAGE_SIZE) * KV_HEADS + kv_head
                    tl.store(keys_ptr + new_place * KEY_DIM + k_dim, new_key, mask=k_dim < KEY_DIM)
                    tl.store(values_ptr + new_place * VALUE_DIM + v_dim, new_value, mask=v_dim < VALUE_DIM)

        if splits == 1:
            finish(
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
                    combine(
                        partial_ptr + slot.to(tl.int64) * SIZE, splits, block, row, first, num_queries, kv_head,
                        out_ptr, sinks_ptr, SINKS, GROUP, KV_HEADS, VALUE_DIM, BLOCK_M, BLOCK_V,
                    )  # fmt: skip


@triton.jit
def _oldest(position: tl.tensor, WINDOW: tl.constexpr, RESTARTS: tl.constexpr) -> tl.tensor:
    """Return the first key that queries see, as `layout.Reach.first` does; it may be negative."""
    return position // WINDOW * WINDOW if RESTARTS else position - WINDOW + 1


@triton.jit
def _bent(scores: tl.tensor, scale: tl.tensor, SOFTCAP: tl.constexpr) -> tl.tensor:
    """Return the products, or for SOFTCAP their tanh for it to multiply: tanh(x) = 1 - 2 / (exp(2x) + 1)."""
    if SOFTCAP is not None:
        scores = 1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2_E * scale / SOFTCAP)) + 1.0)
    return scores


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
    """keys[position[row]] = key[:, row] and values likewise, for each row but those whose position is -1

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
