"""The bypasses' kernels in Triton, for CUDA and ROCm. Their oracle is `naive.py`.

Every kernel reads the same tables, whose fields are int64 and int32 respectively:

    table[slot, group]   offset of A in the arena, sum of ranks, then per site: rank, first column of h, offset of B
    entries[e]           slot, first row, rows, first row in h, bits of the fp32 weight          (see `tiles.py`)
    tiles[t]             first row, rows, first entry, end of its entries

h is fp32, (SPLIT, rows, h_stride): SPLIT partial sums over the input's features, which the reader adds up in order, so
that a few rows still fill the device without floating-point atomics.

BLOCK_M is 1 or at least 16. With 1, products are summed elementwise; else they run on tensor cores, for which fp32 h
is cut into two halves of 16 bits: in bf16 it loses its last 8 bits, in fp16 the last 2 (and must fit, as y must).
ALIGN: all offsets of factors are multiples of so many elements.
"""

from typing import Any

import triton
import triton.language as tl

BLOCK_K_BYTES = 256
BLOCK_N = 128
SHRINK_STAGES = 3
EXPAND_STAGES = 1  # a rank is one block or two: there is nothing to pipeline

TABLE_FIELDS = tl.constexpr(2)
SITE_FIELDS = tl.constexpr(3)
ENTRY_FIELDS = tl.constexpr(8)
TILE_FIELDS = tl.constexpr(4)


def options(block_m: int, num_stages: int) -> dict[str, Any]:
    """How a kernel is compiled. Four warps would spill the sums of 64 rows."""
    return {"num_warps": 8 if block_m == 64 else 4, "num_stages": num_stages, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["group"])
def shrink_kernel(
    x_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    h_ptr: tl.tensor,
    table_ptr: tl.tensor,
    entries_ptr: tl.tensor,
    group: tl.tensor,
    slot_stride: tl.tensor,
    group_stride: tl.tensor,
    h_stride: tl.tensor,
    split_stride: tl.tensor,
    x_stride: tl.tensor,
    in_features: tl.tensor,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """h[split, e.h_row + m, r] = e.weight · sum over the split's k of x[e.row + m, k] · A[r, k], for each entry e.

    x: (rows, in_features) with row stride x_stride. A: (sum of ranks, in_features) of the entry's slot, at its own
    rank. h: owned by the caller; columns from the slot's rank on are not written.
    Grid: (entries, blocks of BLOCK_R over the largest sum of ranks, SPLIT).
    """
    entry = entries_ptr + tl.program_id(0) * ENTRY_FIELDS
    slot = tl.load(entry).to(tl.int64)
    row = tl.load(entry + 1).to(tl.int64)
    num_rows = tl.load(entry + 2)
    h_row = tl.load(entry + 3).to(tl.int64)
    weight = tl.load(entry + 4).to(tl.float32, bitcast=True)
    fields = table_ptr + slot * slot_stride + group * group_stride
    rank = tl.load(fields + 1).to(tl.int32)
    first_r = tl.program_id(1) * BLOCK_R
    if (first_r >= rank) | (num_rows == 0):
        return
    split = tl.program_id(2)
    a_ptr = arena_ptr + tl.multiple_of(tl.load(fields), ALIGN)
    r = first_r + tl.arange(0, BLOCK_R)
    a_rows = a_ptr + r[:, None].to(tl.int64) * in_features
    r_mask = r < rank
    out = h_ptr + split.to(tl.int64) * split_stride + h_row * h_stride
    if BLOCK_M == 1:
        partial = tl.zeros((BLOCK_R, BLOCK_K), tl.float32)
        for k0 in range(split * BLOCK_K, in_features, SPLIT * BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            k_mask = k < in_features
            x = tl.load(x_ptr + row * x_stride + k, mask=k_mask, other=0.0)
            a = tl.load(a_rows + k[None, :], mask=r_mask[:, None] & k_mask[None, :], other=0.0)
            partial += x[None, :].to(tl.float32) * a.to(tl.float32)
        tl.store(out + r, tl.sum(partial, 1) * weight, mask=r_mask)
    else:
        m = tl.arange(0, BLOCK_M)
        m_mask = m < num_rows
        x_rows = x_ptr + (row + m[:, None]) * x_stride
        acc = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        for k0 in range(split * BLOCK_K, in_features, SPLIT * BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            k_mask = k < in_features
            x = tl.load(x_rows + k[None, :], mask=m_mask[:, None] & k_mask[None, :], other=0.0)
            a = tl.load(a_rows + k[None, :], mask=r_mask[:, None] & k_mask[None, :], other=0.0)
            acc = tl.dot(x, tl.trans(a), acc, input_precision="ieee")
        out_rows = out + m[:, None].to(tl.int64) * h_stride + r[None, :]
        tl.store(out_rows, acc * weight, mask=m_mask[:, None] & r_mask[None, :])


@triton.jit(do_not_specialize=["group"])
def gather_kernel(
    ids_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    h_ptr: tl.tensor,
    table_ptr: tl.tensor,
    entries_ptr: tl.tensor,
    group: tl.tensor,
    slot_stride: tl.tensor,
    group_stride: tl.tensor,
    h_stride: tl.tensor,
    split_stride: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    """h[e.h_row + m, r] = e.weight · A[ids[e.row + m], r], for each entry e.

    ids: (rows,) int64. A: (in_features, rank) of the entry's slot. h has one split, so that split_stride is not
    read. Grid: (entries, blocks of BLOCK_R).
    """
    entry = entries_ptr + tl.program_id(0) * ENTRY_FIELDS
    slot = tl.load(entry).to(tl.int64)
    row = tl.load(entry + 1).to(tl.int64)
    num_rows = tl.load(entry + 2)
    h_row = tl.load(entry + 3).to(tl.int64)
    weight = tl.load(entry + 4).to(tl.float32, bitcast=True)
    fields = table_ptr + slot * slot_stride + group * group_stride
    rank = tl.load(fields + 1)
    m = tl.arange(0, BLOCK_M)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    ids = tl.load(ids_ptr + row + m, mask=m < num_rows, other=0)
    mask = (m < num_rows)[:, None] & (r < rank)[None, :]
    a = tl.load(arena_ptr + tl.load(fields) + ids[:, None] * rank + r[None, :], mask=mask, other=0.0)
    tl.store(h_ptr + (h_row + m[:, None]) * h_stride + r[None, :], a.to(tl.float32) * weight, mask=mask)


@triton.jit(do_not_specialize=["group", "position"])
def expand_kernel(
    y_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    h_ptr: tl.tensor,
    table_ptr: tl.tensor,
    entries_ptr: tl.tensor,
    group: tl.tensor,
    slot_stride: tl.tensor,
    group_stride: tl.tensor,
    h_stride: tl.tensor,
    split_stride: tl.tensor,
    tiles_ptr: tl.tensor,
    position: tl.tensor,
    y_stride: tl.tensor,
    out_features: tl.tensor,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """y[t.row + m, n] += sum over t's entries e, and over r: h[e.h_row + m, column + r] · B[r, n], for each tile t.

    y: (rows, out_features) with row stride y_stride, read and written once, by one program for each tile and BLOCK_N
    columns; not at all where no entry of the tile has the site. B: (rank, out_features) of the entry's slot.
    Grid: (tiles, blocks of BLOCK_N over out_features).
    """
    tile = tiles_ptr + tl.program_id(0) * TILE_FIELDS
    row = tl.load(tile).to(tl.int64)
    num_rows = tl.load(tile + 1)
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_mask = m < num_rows
    n_mask = n < out_features
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    total = 0
    for index in range(tl.load(tile + 2), tl.load(tile + 3)):
        entry = entries_ptr + index * ENTRY_FIELDS
        slot = tl.load(entry).to(tl.int64)
        h_row = tl.load(entry + 3).to(tl.int64)
        site = table_ptr + slot * slot_stride + group * group_stride + TABLE_FIELDS + position * SITE_FIELDS
        rank = tl.load(site).to(tl.int32)
        h_rows = h_ptr + (h_row + m[:, None]) * h_stride + tl.load(site + 1)
        b_ptr = arena_ptr + tl.multiple_of(tl.load(site + 2), ALIGN)
        total += rank
        for r0 in range(0, rank, BLOCK_R):
            r = r0 + tl.arange(0, BLOCK_R)
            r_mask = r < rank
            h_mask = m_mask[:, None] & r_mask[None, :]
            h = tl.load(h_rows + r[None, :], mask=h_mask, other=0.0)
            for split in tl.static_range(1, SPLIT):
                h += tl.load(h_rows + split * split_stride + r[None, :], mask=h_mask, other=0.0)
            b_rows = b_ptr + r[:, None].to(tl.int64) * out_features
            b = tl.load(b_rows + n[None, :], mask=r_mask[:, None] & n_mask[None, :], other=0.0)
            if BLOCK_M == 1:
                acc += tl.sum(tl.trans(h) * b.to(tl.float32), 0)[None, :]
            elif b.dtype == tl.float32:
                acc = tl.dot(h, b, acc, input_precision="ieee")
            else:
                high = h.to(b.dtype)
                acc = tl.dot(high, b, acc)
                acc = tl.dot((h - high.to(tl.float32)).to(b.dtype), b, acc)
    if total > 0:
        y = y_ptr + (row + m[:, None]) * y_stride + n[None, :]
        mask = m_mask[:, None] & n_mask[None, :]
        old = tl.load(y, mask=mask, other=0.0)
        tl.store(y, (old.to(tl.float32) + acc).to(old.dtype), mask=mask)
