"""The kernels, each one launch for all adapters of a step at a site: y[rows] += Σ over its entries of weight · term.

A program has one tile of rows and one block of columns, which it alone writes. Sums run in fp32, in the order of the
entries and of the summed terms, and are added with one rounding. Tiles and entries are those of `lists.py`; the tensors
of an entry are read from the arena where they lie. Rows and columns may be any number.
"""

import triton
import triton.language as tl

RECORD = tl.constexpr(8)


@triton.jit
def rotation_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    list_ptr: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    first_tile: tl.tensor,
    width: tl.tensor,
    num_rows: tl.tensor,
    k: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_J: tl.constexpr,
) -> None:
    """term[m, n] = sum over j < k of blocks[n mod num_rows, j] · x[m, n // k · k + j]

    Rotates inputs, as OFT and BOFT do. x, y: (rows, width), different memory. Entry: blocks, (num_rows, k): all of them
    below each other, or one for all.
    """
    tile = list_ptr + (first_tile + tl.program_id(0)) * RECORD
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_mask = m < tl.load(tile + 1)
    n_mask = n < width
    rows = tl.load(tile) + m.to(tl.int64)
    x_rows = x_ptr + rows[:, None, None] * x_stride + (n // k * k)[None, :, None]
    entry = list_ptr + tl.load(tile + 2) * RECORD
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(tl.load(tile + 3)):
        weight = tl.load(entry).to(tl.int32).to(tl.float32, bitcast=True)
        blocks = arena_ptr + tl.load(entry + 1) + (n % num_rows).to(tl.int64)[:, None] * k
        for j0 in range(0, k, BLOCK_J):
            j = j0 + tl.arange(0, BLOCK_J)
            mask = n_mask[:, None] & (j < k)[None, :]
            block = tl.load(blocks + j[None, :], mask=mask, other=0.0).to(tl.float32)
            x = tl.load(x_rows + j[None, None, :], mask=m_mask[:, None, None] & mask[None, :, :], other=0.0)
            acc += weight * tl.sum(x.to(tl.float32) * block[None, :, :], 2)
        entry += RECORD
    _add(y_ptr + rows[:, None] * y_stride + n[None, :], m_mask[:, None] & n_mask[None, :], acc)


@triton.jit
def pair_kernel(
    before_ptr: tl.tensor,
    y_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    list_ptr: tl.tensor,
    before_stride: tl.tensor,
    y_stride: tl.tensor,
    first_tile: tl.tensor,
    width: tl.tensor,
    half: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """term = d ⊙ before + c ⊙ rot(before), where rot makes (-v, u) of the halves (u, v) of every 2 · half columns

    Rotates pairs, as RoAD does. before, y: (rows, width), the same memory or different. Entry: d and c, (width,).
    """
    tile = list_ptr + (first_tile + tl.program_id(0)) * RECORD
    m = tl.arange(0, BLOCK_M)
    pair = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = pair // half * (2 * half) + pair % half
    second = first + half
    mask = (m < tl.load(tile + 1))[:, None] & (second < width)[None, :]
    rows = tl.load(tile) + m.to(tl.int64)
    before = before_ptr + rows[:, None] * before_stride
    u = tl.load(before + first[None, :], mask=mask, other=0.0).to(tl.float32)
    v = tl.load(before + second[None, :], mask=mask, other=0.0).to(tl.float32)
    entry = list_ptr + tl.load(tile + 2) * RECORD
    acc_u = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_v = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(tl.load(tile + 3)):
        weight = tl.load(entry).to(tl.int32).to(tl.float32, bitcast=True)
        d = arena_ptr + tl.load(entry + 1)
        c = arena_ptr + tl.load(entry + 2)
        there = second < width
        acc_u += weight * (_row(d, first, there) * u - _row(c, first, there) * v)
        acc_v += weight * (_row(d, second, there) * v + _row(c, second, there) * u)
        entry += RECORD
    y = y_ptr + rows[:, None] * y_stride
    _add(y + first[None, :], mask, acc_u)
    _add(y + second[None, :], mask, acc_v)


@triton.jit
def sparse_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    ints_ptr: tl.tensor,
    list_ptr: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    first_tile: tl.tensor,
    width: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_J: tl.constexpr,
) -> None:
    """term[m, n] = sum over j from starts[n] to starts[n + 1] of values[j] · x[m, columns[j]]

    Adds sparse deltas, as SHiRA does. x: (rows, in); y: (rows, width). Entry: starts (width + 1,) and columns (nnz,),
    int32, and values (nnz,).
    """
    tile = list_ptr + (first_tile + tl.program_id(0)) * RECORD
    m = tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_mask = m < tl.load(tile + 1)
    n_mask = n < width
    rows = tl.load(tile) + m.to(tl.int64)
    x_rows = x_ptr + rows[:, None, None] * x_stride
    entry = list_ptr + tl.load(tile + 2) * RECORD
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(tl.load(tile + 3)):
        weight = tl.load(entry).to(tl.int32).to(tl.float32, bitcast=True)
        starts = ints_ptr + tl.load(entry + 1) + n
        columns = ints_ptr + tl.load(entry + 2)
        values = arena_ptr + tl.load(entry + 3)
        start = tl.load(starts, mask=n_mask, other=0)
        count = tl.load(starts + 1, mask=n_mask, other=0) - start
        for j0 in range(0, tl.max(count, 0), BLOCK_J):
            j = j0 + tl.arange(0, BLOCK_J)
            mask = j[None, :] < count[:, None]
            place = start[:, None] + j[None, :]
            column = tl.load(columns + place, mask=mask, other=0)
            value = tl.load(values + place, mask=mask, other=0.0).to(tl.float32)
            x = tl.load(x_rows + column[None, :, :], mask=m_mask[:, None, None] & mask[None, :, :], other=0.0)
            acc += weight * tl.sum(x.to(tl.float32) * value[None, :, :], 2)
        entry += RECORD
    _add(y_ptr + rows[:, None] * y_stride + n[None, :], m_mask[:, None] & n_mask[None, :], acc)


@triton.jit
def kronecker_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    list_ptr: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    first_tile: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """term[i · b + j] = sum over p < c of w1[i, p] · (sum over q < d of w2[j, q] · x[p · d + q])

    Adds Kronecker products, as LoKr does. x: (rows, c · d); y: (rows, a · b); tiles of one row. Entry: w1 (a, c) and w2
    (b, d). The inner sums stay in fp32: for tensor cores they are two halves of 16 bits. They are computed again for
    every BLOCK_A rows of w1.
    """
    tile = list_ptr + (first_tile + tl.program_id(0)) * RECORD
    num_j = tl.cdiv(b, BLOCK_B)
    i = tl.program_id(1) // num_j * BLOCK_A + tl.arange(0, BLOCK_A)
    j = tl.program_id(1) % num_j * BLOCK_B + tl.arange(0, BLOCK_B)
    row = tl.load(tile)
    x_row = x_ptr + row * x_stride
    entry = list_ptr + tl.load(tile + 2) * RECORD
    acc = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    for _ in range(tl.load(tile + 3)):
        weight = tl.load(entry).to(tl.int32).to(tl.float32, bitcast=True)
        w1 = arena_ptr + tl.load(entry + 1) + i[:, None] * c
        w2 = arena_ptr + tl.load(entry + 2) + j[None, :] * d
        for p0 in range(0, c, BLOCK_C):
            p = p0 + tl.arange(0, BLOCK_C)
            inner = tl.zeros((BLOCK_C, BLOCK_B), tl.float32)
            for q0 in range(0, d, BLOCK_D):
                q = q0 + tl.arange(0, BLOCK_D)
                x = tl.load(x_row + p[:, None] * d + q[None, :], mask=(p < c)[:, None] & (q < d)[None, :], other=0.0)
                right = tl.load(w2 + q[:, None], mask=(q < d)[:, None] & (j < b)[None, :], other=0.0)
                inner = tl.dot(x, right, inner, input_precision="ieee")
            left = tl.load(w1 + p[None, :], mask=(i < a)[:, None] & (p < c)[None, :], other=0.0)
            if left.dtype == tl.float32:
                part = tl.dot(left, inner, input_precision="ieee")
            else:
                high = inner.to(left.dtype)
                part = tl.dot(left, high)
                part = tl.dot(left, (inner - high.to(tl.float32)).to(left.dtype), part)
            acc += weight * part
        entry += RECORD
    mask = (i < a)[:, None] & (j < b)[None, :]
    _add(y_ptr + row * y_stride + i[:, None] * b + j[None, :], mask, acc)


@triton.jit
def _row(ptr: tl.tensor, n: tl.tensor, mask: tl.tensor) -> tl.tensor:
    return tl.load(ptr + n, mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _add(y: tl.tensor, mask: tl.tensor, term: tl.tensor) -> None:
    old = tl.load(y, mask=mask, other=0.0)
    tl.store(y, (old.to(tl.float32) + term).to(old.dtype), mask=mask)
