"""The kernels of spare columns in Triton: h behind inputs, and adapters' B behind weights.

    fill_kernel    wide[m, in_features + c] = w[m, c] · sum over k of x[m, k] · A[c, k]
    store_kernel   W[n, in_features + c] = B[n, c]

w[m, c] is the weight that row m gives to the adapter of column c: 0 where it has another one. Rows know the run
of rows that they are in, and runs the weight of each slot. One launch of each serves all adapters.

    table[group]   int64 (COLUMN_FIELDS, columns), of each column: its slot, or -1; offset of its row of A in the arena;
                   offset of its column of B, were its site's rows the first ones; first of these rows, and their end
    groups         int64 (groups, 4): address of the weight, its row stride, in_features, rows
    jobs           int64 (jobs, 3): place of the group, first column, columns

Every element is written by one program, and each sum has one order: the same step gives the same bits.
"""

import triton
import triton.language as tl

COLUMN_FIELDS = 5


@triton.jit(do_not_specialize=["rows", "known_rows", "slots", "used"])
def fill_kernel(
    x_ptr: tl.tensor,
    wide_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    table_ptr: tl.tensor,
    runs_ptr: tl.tensor,
    weights_ptr: tl.tensor,
    x_stride: tl.tensor,
    wide_stride: tl.tensor,
    in_features: tl.tensor,
    columns: tl.tensor,
    rows: tl.tensor,
    known_rows: tl.tensor,
    slots: tl.tensor,
    used: tl.tensor,
    COPY: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Write h behind the rows of x, and with COPY the rows themselves.

    x: (rows, in_features), copied to the first columns of wide if COPY. table: of the group. runs: (known_rows,) int32;
    rows beyond are in run 0, which has no adapter. weights: (runs, slots) fp32. used: columns that are written.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_mask, c_mask = m < rows, c < used
    slot = tl.load(table_ptr + c, mask=c_mask, other=-1)
    run = tl.load(runs_ptr + m, mask=m < known_rows, other=0).to(tl.int64)
    there = (slot >= 0) & (slot < slots)
    w = tl.load(weights_ptr + run[:, None] * slots + slot[None, :], mask=m_mask[:, None] & there[None, :], other=0.0)
    works = tl.max(tl.abs(w), 0) > 0
    a_offset = tl.multiple_of(tl.load(table_ptr + columns + c, mask=works, other=0), ALIGN)
    copied = m < tl.where(tl.program_id(1) == 0, rows, 0)
    x_rows = x_ptr + m[:, None].to(tl.int64) * x_stride
    wide_rows = wide_ptr + m[:, None].to(tl.int64) * wide_stride
    sums = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    end = tl.where(tl.max(works.to(tl.int32), 0) > 0, in_features, 0)
    if COPY:
        end = tl.where(tl.program_id(1) == 0, in_features, end)
    for k0 in range(0, end, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        k_mask = k < in_features
        x = tl.load(x_rows + k[None, :], mask=m_mask[:, None] & k_mask[None, :], other=0.0)
        a = tl.load(arena_ptr + (a_offset[None, :] + k[:, None]), mask=works[None, :] & k_mask[:, None], other=0.0)
        sums = tl.dot(x, a, sums, input_precision="ieee")
        if COPY:
            tl.store(wide_rows + k[None, :], x, mask=copied[:, None] & k_mask[None, :])
    h = tl.where(w != 0, sums * w, 0.0).to(wide_ptr.dtype.element_ty)
    tl.store(wide_rows + in_features + c[None, :], h, mask=m_mask[:, None] & c_mask[None, :])


@triton.jit(do_not_specialize=["columns"])
def store_kernel(
    arena_ptr: tl.tensor,
    table_ptr: tl.tensor,
    groups_ptr: tl.tensor,
    jobs_ptr: tl.tensor,
    columns: tl.tensor,
    LARGEST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Write the B of adapters into columns of the weights, one program for each job and block of rows.

    table: of all groups. LARGEST: finite number of the arena's type that replaces larger ones and infinity.
    """
    job = jobs_ptr + tl.program_id(0) * 3
    place, first, count = tl.load(job), tl.load(job + 1), tl.load(job + 2)
    group = groups_ptr + place * 4
    weight = tl.load(group).to(tl.pointer_type(arena_ptr.dtype.element_ty))
    stride, in_features, rows = tl.load(group + 1), tl.load(group + 2), tl.load(group + 3)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    n_mask = n < rows
    end = tl.where(tl.program_id(1) * BLOCK_N < rows, count, 0)
    for c0 in range(0, end, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        c_mask = c < count
        fields = table_ptr + place * columns * 5 + first + c
        offset = tl.load(fields + 2 * columns, mask=c_mask, other=0)
        low = tl.load(fields + 3 * columns, mask=c_mask, other=0)
        high = tl.load(fields + 4 * columns, mask=c_mask, other=0)
        own = (n[:, None] >= low[None, :]) & (n[:, None] < high[None, :])
        b = tl.load(arena_ptr + (offset[None, :] + n[:, None]), mask=own, other=0.0).to(tl.float32)
        b = tl.minimum(tl.maximum(tl.where(b == b, b, 0.0), -LARGEST), LARGEST)
        out = weight + n[:, None] * stride + in_features + first + c[None, :]
        tl.store(out, b.to(arena_ptr.dtype.element_ty), mask=n_mask[:, None] & c_mask[None, :])
