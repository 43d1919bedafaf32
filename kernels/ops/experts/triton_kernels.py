"""The experts' two kernels in Triton, for CUDA and ROCm: shrink and expand of all adapters and experts at a parameter.

    shrink   h[p, u] = weight · (x[p] · A[e, u])          for each place p and each rank u of its adapters
    expand   y[p, n] += sum over u of h[p, u] · B[e, n, u]

A tile is up to BLOCK_M places of one group, which is an expert and a combination of adapters: they share all factors,
so a tile reads each factor once. Where tiles begin is in device memory (`routing.py`), and what combinations are of:

    spans[combination]   int64: its first unit, and how many there are
    units[unit]          int64: offsets of A (experts, rank, in) and B (experts, out, rank) in the arena, the rank, the
                         unit's first rank, and the row of the weights

A unit is BLOCK_R ranks of one adapter. h is fp32, (split, places, units · BLOCK_R): partial sums over the input's
features, which the reader adds up in one order. No program waits for another or adds with atomics, and each element of
y belongs to one program. A tile of one place is sums of products; all others run on tensor cores, for which fp32 h is
cut into two halves of 16 bits.
"""

import triton
import triton.language as tl

UNIT_FIELDS = tl.constexpr(5)


@triton.jit(do_not_specialize=["blocks", "pairs", "rows", "combinations", "k"])
def expert_shrink_kernel(
    x_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    h_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    order_ptr: tl.tensor,
    heads_ptr: tl.tensor,
    spans_ptr: tl.tensor,
    units_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    x_stride: tl.tensor,
    in_features: tl.tensor,
    columns: tl.tensor,
    blocks: tl.tensor,
    pairs: tl.tensor,
    rows: tl.tensor,
    combinations: tl.tensor,
    k: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """Compute h of one tile, unit and part. Grid: (tiles, units of a combination at most, split).

    x: (pairs, in_features). h: (split, pairs, columns). weights: (members, rows) fp32. blocks: blocks of features in a
    part. ALIGN: divides all offsets of factors and all ranks, in elements.
    """
    head = tl.load(heads_ptr + tl.program_id(0))
    unit = tl.program_id(1)
    part = tl.program_id(2)
    if head < pairs:
        key = tl.load(keys_ptr + head)
        span = spans_ptr + key % combinations * 2
        if unit < tl.load(span + 1):
            record = units_ptr + (tl.load(span) + unit) * UNIT_FIELDS
            rank = tl.load(record + 2).to(tl.int32)
            first = tl.multiple_of(tl.load(record + 3).to(tl.int32), BLOCK_R)
            expert = (key // combinations).to(tl.int64) * rank * in_features
            a = arena_ptr + tl.multiple_of(tl.load(record) + expert, ALIGN)
            weights = weights_ptr + tl.load(record + 4) * rows
            x = x_ptr + head.to(tl.int64) * x_stride
            h = h_ptr + (part.to(tl.int64) * pairs + head) * columns + unit * BLOCK_R
            k0 = part * blocks * BLOCK_K
            k1 = tl.minimum(k0 + blocks * BLOCK_K, in_features)
            after = tl.load(keys_ptr + head + 1, mask=head + 1 < pairs, other=-1)
            # fmt: off
            if after == key:
                _shrink(x, x_stride, a, in_features, h, columns, keys_ptr + head, order_ptr + head, weights, key,
                        pairs - head, k, rank, first, k0, k1, BLOCK_M, BLOCK_R, BLOCK_K)
            else:
                _shrink(x, x_stride, a, in_features, h, columns, keys_ptr + head, order_ptr + head, weights, key,
                        pairs - head, k, rank, first, k0, k1, 1, BLOCK_R, BLOCK_K)
            # fmt: on


@triton.jit
def _shrink(
    x_ptr: tl.tensor,
    x_stride: tl.tensor,
    a_ptr: tl.tensor,
    in_features: tl.tensor,
    h_ptr: tl.tensor,
    columns: tl.tensor,
    keys_ptr: tl.tensor,
    order_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    key: tl.tensor,
    left: tl.tensor,
    k: tl.tensor,
    rank: tl.tensor,
    first: tl.tensor,
    k_start: tl.tensor,
    k_end: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Sum one unit of a tile. left: places from the tile's first one to the last of all.

    Ranks of the unit beyond `rank` are written as 0.
    """
    m = tl.arange(0, BLOCK_M)
    r = first + tl.arange(0, BLOCK_R)
    m_mask = tl.load(keys_ptr + m, mask=m < left, other=-1) == key
    r_mask = r < rank
    x_rows = x_ptr + m[:, None].to(tl.int64) * x_stride
    a_rows = a_ptr + r[:, None].to(tl.int64) * in_features
    sums = tl.zeros((BLOCK_R, BLOCK_K) if BLOCK_M == 1 else (BLOCK_M, BLOCK_R), tl.float32)
    for k0 in range(k_start, k_end, BLOCK_K):
        columns_in = k0 + tl.arange(0, BLOCK_K)
        in_mask = columns_in < k_end
        x = tl.load(x_rows + columns_in[None, :], mask=m_mask[:, None] & in_mask[None, :], other=0.0)
        a = tl.load(a_rows + columns_in[None, :], mask=r_mask[:, None] & in_mask[None, :], other=0.0)
        if BLOCK_M == 1:
            sums += x.to(tl.float32) * a.to(tl.float32)
        else:
            sums = tl.dot(x, tl.trans(a), sums, input_precision="ieee")
    h = tl.sum(sums, 1)[None, :] if BLOCK_M == 1 else sums
    token = tl.load(order_ptr + m, mask=m_mask, other=0) // k
    weight = tl.load(weights_ptr + token, mask=m_mask, other=0.0)
    places = h_ptr + m[:, None].to(tl.int64) * columns + tl.arange(0, BLOCK_R)[None, :]
    tl.store(places, h * weight[:, None], mask=m_mask[:, None] & (r >= 0)[None, :])


@triton.jit(do_not_specialize=["split", "pairs", "combinations"])
def expert_expand_kernel(
    h_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    y_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    heads_ptr: tl.tensor,
    spans_ptr: tl.tensor,
    units_ptr: tl.tensor,
    y_stride: tl.tensor,
    out_features: tl.tensor,
    columns: tl.tensor,
    split: tl.tensor,
    pairs: tl.tensor,
    combinations: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """Add to y for one tile and block of columns. Grid: (tiles, blocks of out_features).

    y: (pairs, out_features), each element read and written by one program.
    """
    head = tl.load(heads_ptr + tl.program_id(0))
    n0 = tl.program_id(1) * BLOCK_N
    if head < pairs:
        key = tl.load(keys_ptr + head)
        span = spans_ptr + key % combinations * 2
        count = tl.load(span + 1)
        if count > 0:
            units = units_ptr + tl.load(span) * UNIT_FIELDS
            expert = (key // combinations).to(tl.int64) * out_features
            y = y_ptr + head.to(tl.int64) * y_stride
            h = h_ptr + head.to(tl.int64) * columns
            h_size = pairs.to(tl.int64) * columns
            after = tl.load(keys_ptr + head + 1, mask=head + 1 < pairs, other=-1)
            # fmt: off
            if after == key:
                _expand(h, h_size, columns, split, arena_ptr, expert, y, y_stride, out_features, n0, units, count,
                        keys_ptr + head, key, pairs - head, BLOCK_M, BLOCK_R, BLOCK_N, ALIGN)
            else:
                _expand(h, h_size, columns, split, arena_ptr, expert, y, y_stride, out_features, n0, units, count,
                        keys_ptr + head, key, pairs - head, 1, BLOCK_R, BLOCK_N, ALIGN)
            # fmt: on


@triton.jit
def _expand(
    h_ptr: tl.tensor,
    h_size: tl.tensor,
    columns: tl.tensor,
    split: tl.tensor,
    arena_ptr: tl.tensor,
    expert: tl.tensor,
    y_ptr: tl.tensor,
    y_stride: tl.tensor,
    out_features: tl.tensor,
    n_start: tl.tensor,
    units_ptr: tl.tensor,
    count: tl.tensor,
    keys_ptr: tl.tensor,
    key: tl.tensor,
    left: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """Add all units of a combination.

    expert: the first of its rows in a B of rank 1, `e · out_features`. count: units, 1 or more.
    """
    m = tl.arange(0, BLOCK_M)
    n = n_start + tl.arange(0, BLOCK_N)
    m_mask = tl.load(keys_ptr + m, mask=m < left, other=-1) == key
    y = y_ptr + m[:, None].to(tl.int64) * y_stride + n[None, :]
    y_mask = m_mask[:, None] & (n < out_features)[None, :]
    if BLOCK_M == 1:  # in flight beside the factors; more rows would take too many registers
        old = tl.load(y, mask=y_mask, other=0.0)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_low = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for unit in range(count):
        record = units_ptr + unit * UNIT_FIELDS
        rank = tl.multiple_of(tl.load(record + 2), ALIGN)
        r = tl.multiple_of(tl.load(record + 3), BLOCK_R) + tl.arange(0, BLOCK_R)
        b_ptr = arena_ptr + tl.multiple_of(tl.load(record + 1) + expert * rank, ALIGN)
        b_mask = (n < out_features)[:, None] & (r < rank)[None, :]
        b = tl.load(b_ptr + n[:, None].to(tl.int64) * rank + r[None, :], mask=b_mask, other=0.0)
        h_rows = h_ptr + m[:, None].to(tl.int64) * columns + unit * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
        h = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        for part in range(split):
            h += tl.load(h_rows + part * h_size, mask=m_mask[:, None] & (r < rank)[None, :], other=0.0)
        if BLOCK_M == 1:
            acc += tl.sum(b.to(tl.float32) * h, 1)[None, :]
        elif b.dtype == tl.float32:
            acc = tl.dot(h, tl.trans(b), acc, input_precision="ieee")
        else:
            high = h.to(b.dtype)
            acc = tl.dot(high, tl.trans(b), acc)
            acc_low = tl.dot((h - high.to(tl.float32)).to(b.dtype), tl.trans(b), acc_low)
    if BLOCK_M > 1:
        old = tl.load(y, mask=y_mask, other=0.0)
    tl.store(y, (old.to(tl.float32) + (acc + acc_low)).to(old.dtype), mask=y_mask)
