"""The first of a group's two launches: its input times A, for each adapter's own rows.

    for each unit u, each part k of the input's features:   h[k, u] = u.weight · x[u.rows, k] A[u.ranks, k]ᵀ

A block takes one part of one unit (`lists.py`) and waits for no other. Whoever reads h sums the parts, in one order, so
that a few rows fill the device without floating-point atomics.

Where EARLY, a block may run before the kernel ahead has ended: it reads its record and the first of A, then waits until
all that was enqueued before it is done, and only then reads x and writes h. Blocks without work wait as well: a launch
that has ended says that all before it have.
"""

import triton
import triton.language as tl

from .records import RECORD_FIELDS, aligned, read_unit, wait


@triton.jit(do_not_specialize=["group"])
def shrink_kernel(
    x_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    records_ptr: tl.tensor,
    list_ptr: tl.tensor,
    h_ptr: tl.tensor,
    x_stride: tl.tensor,
    in_features: tl.tensor,
    part: tl.tensor,
    part_stride: tl.tensor,
    records_stride: tl.tensor,
    group: tl.tensor,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    STEP: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGN: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Write h of one part, for unit after unit.

    x: (rows, in_features) with row stride x_stride, of the arena's type. h: fp32, (parts, part_stride). The grid is
    (parts, units); a program goes on with the unit as many further on as the grid has. part: features of a block, a
    multiple of STEP, which are summed at a time; no more than those if WHOLE. ROWS: most rows of a unit; 1: sums of
    products, all loads of a step at once. ALIGN: divides all offsets of factors, in elements.
    """
    k_start = tl.program_id(0) * part
    k_end = tl.minimum(k_start + part, in_features)
    h_ptr += tl.program_id(0).to(tl.int64) * part_stride
    count = tl.load(list_ptr + group * RECORD_FIELDS + 1)
    units = records_ptr + group.to(tl.int64) * records_stride
    first = tl.program_id(1)
    row, rows, ranks, place, width, weight, a = read_unit(units + first * RECORD_FIELDS, first >= 0)
    for unit in range(first, count, tl.num_programs(1)):
        x = x_ptr + row.to(tl.int64) * x_stride
        a_ptr = arena_ptr + aligned(a, ALIGN)
        if rows > 0:
            out = h_ptr + place
            if ROWS == 1:
                _shrink_row(x, a_ptr, out, in_features, k_start, k_end, ranks, weight, RANKS, STEP, WHOLE, EARLY)
            else:
                if EARLY:
                    wait()
                _shrink_tile(
                    x, a_ptr, out, x_stride, in_features, k_start, k_end, rows, ranks, width, weight, ROWS, RANKS, STEP
                )
        following = unit + tl.num_programs(1)
        row, rows, ranks, place, width, weight, a = read_unit(units + following * RECORD_FIELDS, following < count)
    if EARLY:
        wait()


@triton.jit
def _shrink_row(
    x_ptr: tl.tensor,
    a_ptr: tl.tensor,
    out_ptr: tl.tensor,
    in_features: tl.tensor,
    k_start: tl.tensor,
    k_end: tl.tensor,
    ranks: tl.tensor,
    weight: tl.tensor,
    RANKS: tl.constexpr,
    STEP: tl.constexpr,
    WHOLE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    r = tl.arange(0, RANKS)
    k = k_start + tl.arange(0, STEP)
    a_rows = a_ptr + r[:, None].to(tl.int64) * in_features
    r_mask = r < ranks
    a = tl.load(a_rows + k[None, :], mask=r_mask[:, None] & (k < k_end)[None, :], other=0.0)
    if EARLY:
        wait()
    x = tl.load(x_ptr + k, mask=k < k_end, other=0.0)
    sums = a.to(tl.float32) * x.to(tl.float32)[None, :]
    if not WHOLE:
        for k0 in range(k_start + STEP, k_end, STEP):
            k = k0 + tl.arange(0, STEP)
            a = tl.load(a_rows + k[None, :], mask=r_mask[:, None] & (k < k_end)[None, :], other=0.0)
            x = tl.load(x_ptr + k, mask=k < k_end, other=0.0)
            sums += a.to(tl.float32) * x.to(tl.float32)[None, :]
    tl.store(out_ptr + r, tl.sum(sums, 1) * weight, mask=r_mask)


@triton.jit
def _shrink_tile(
    x_ptr: tl.tensor,
    a_ptr: tl.tensor,
    out_ptr: tl.tensor,
    x_stride: tl.tensor,
    in_features: tl.tensor,
    k_start: tl.tensor,
    k_end: tl.tensor,
    rows: tl.tensor,
    ranks: tl.tensor,
    width: tl.tensor,
    weight: tl.tensor,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    m, r = tl.arange(0, ROWS), tl.arange(0, RANKS)
    m_mask, r_mask = m < rows, r < ranks
    x_rows = x_ptr + m[:, None].to(tl.int64) * x_stride
    a_rows = a_ptr + r[:, None].to(tl.int64) * in_features
    sums = tl.zeros((ROWS, RANKS), tl.float32)
    for k0 in range(k_start, k_end, STEP):
        k = k0 + tl.arange(0, STEP)
        k_mask = (k < k_end)[None, :]
        x = tl.load(x_rows + k[None, :], mask=m_mask[:, None] & k_mask, other=0.0)
        a = tl.load(a_rows + k[None, :], mask=r_mask[:, None] & k_mask, other=0.0)
        sums = tl.dot(x, tl.trans(a), sums, input_precision="ieee")
    out = out_ptr + m[:, None] * width + r[None, :]
    tl.store(out, sums * weight, mask=m_mask[:, None] & r_mask[None, :])
