"""Expand for tiles of several rows, on tensor cores.

They take fp32 h as two halves of 16 bits: in bf16 it loses its last 8 bits, in fp16 the last 2 (and must fit, as y
must). In nearly all tiles one adapter works, with few enough ranks: then h is summed once, and B is loaded block of
columns after block of columns, while those before are multiplied.
"""

import triton
import triton.language as tl

from .records import aligned, load_b, load_row, read_entry


@triton.jit
def add_tile(
    entry: tl.tensor,
    rows: tl.tensor,
    members: tl.tensor,
    others: tl.tensor,
    own: tl.tensor,
    ids_ptr: tl.tensor,
    y_ptr: tl.tensor,
    y_stride: tl.tensor,
    width: tl.tensor,
    n_start: tl.tensor,
    arena_ptr: tl.tensor,
    h_ptr: tl.tensor,
    parts: tl.tensor,
    part_stride: tl.tensor,
    SIZE: tl.constexpr,
    GATHER: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WALKED: tl.constexpr,
    STAGES: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """Add to y[m, n] for the tile's rows and WALKED blocks of columns. others: the entries behind the first."""
    _weight, _h_width, _a, rank, _place, b_offset, scale, bias = entry
    blocks = tl.minimum(tl.cdiv(width - n_start, COLUMNS), WALKED)
    m = tl.arange(0, ROWS)
    y_rows = y_ptr + m[:, None].to(tl.int64) * y_stride
    if members == 1 and rank <= RANKS and scale + bias == 0:
        h = _tile_of_h(entry, 0, rows, ids_ptr, arena_ptr, h_ptr, parts, part_stride, GATHER, ROWS, RANKS, MOST_PARTS)
        b_ptr = arena_ptr + aligned(b_offset, ALIGN)
        _walk(h, b_ptr, rank, y_rows, rows, width, n_start, tl.where(rank > 0, blocks, 0), ROWS, RANKS, COLUMNS, STAGES)
    else:
        for block in range(blocks):
            # fmt: off
            _add_columns(entry, rows, members, others, own, ids_ptr, y_rows, width, n_start + block * COLUMNS,
                         arena_ptr, h_ptr, parts, part_stride, SIZE, GATHER, ROWS, RANKS, COLUMNS, MOST_PARTS, ALIGN)
            # fmt: on


@triton.jit
def _walk(
    h: tl.tensor,
    b_ptr: tl.tensor,
    rank: tl.tensor,
    y_rows: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    n_start: tl.tensor,
    blocks: tl.tensor,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Compute y += h B by blocks of columns. The next block of y is loaded while one is multiplied."""
    m_mask = (tl.arange(0, ROWS) < rows)[:, None]
    r = tl.arange(0, RANKS)
    n = n_start + tl.arange(0, COLUMNS)
    n_end = tl.minimum(n_start + blocks * COLUMNS, width)
    old = tl.load(y_rows + n[None, :], mask=m_mask & (n < n_end)[None, :], other=0.0)
    for block in tl.range(0, blocks, num_stages=STAGES):
        n = n_start + block * COLUMNS + tl.arange(0, COLUMNS)
        b = load_b(b_ptr, r, rank, n, n < width, width)
        following = n + COLUMNS
        ahead = tl.load(y_rows + following[None, :], mask=m_mask & (following < n_end)[None, :], other=0.0)
        acc = _product(h, b, tl.zeros((ROWS, COLUMNS), tl.float32))
        tl.store(y_rows + n[None, :], (old.to(tl.float32) + acc).to(old.dtype), mask=m_mask & (n < width)[None, :])
        old = ahead


@triton.jit
def _add_columns(
    entry: tl.tensor,
    rows: tl.tensor,
    members: tl.tensor,
    others: tl.tensor,
    own: tl.tensor,
    ids_ptr: tl.tensor,
    y_rows: tl.tensor,
    width: tl.tensor,
    n_start: tl.tensor,
    arena_ptr: tl.tensor,
    h_ptr: tl.tensor,
    parts: tl.tensor,
    part_stride: tl.tensor,
    SIZE: tl.constexpr,
    GATHER: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """Add to y[m, n] for one block of columns in the general case: mixtures, any rank, fused scales and biases."""
    n = n_start + tl.arange(0, COLUMNS)
    n_mask = n < width
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    scales = tl.zeros((COLUMNS,), tl.float32)
    biases = tl.zeros((COLUMNS,), tl.float32)
    touched = tl.zeros((), tl.int64)
    for index in range(members):
        weight, _h_width, _a, rank, _place, b_offset, scale, bias = entry
        b_ptr = arena_ptr + aligned(b_offset, ALIGN)
        for r0 in tl.range(0, rank, RANKS, num_stages=1):
            # fmt: off
            h = _tile_of_h(entry, r0, rows, ids_ptr, arena_ptr, h_ptr, parts, part_stride, GATHER, ROWS, RANKS,
                           MOST_PARTS)
            # fmt: on
            b = load_b(b_ptr, r0 + tl.arange(0, RANKS), rank, n, n_mask, width)
            acc = _product(h, b, acc)
        if scale > 0:
            scales += weight * load_row(arena_ptr + aligned(scale - 1, ALIGN), n, n_mask)
        if bias > 0:
            biases += weight * load_row(arena_ptr + aligned(bias - 1, ALIGN), n, n_mask)
        touched += rank + scale + bias
        entry = read_entry(others + index * SIZE, own, members > index + 1)
    mask = (tl.arange(0, ROWS) < tl.where(touched > 0, rows, 0))[:, None] & n_mask[None, :]
    old = tl.load(y_rows + n[None, :], mask=mask, other=0.0)
    y = old.to(tl.float32)
    tl.store(y_rows + n[None, :], (y + (y * scales[None, :] + (acc + biases[None, :]))).to(old.dtype), mask=mask)


@triton.jit
def _product(h: tl.tensor, b: tl.tensor, acc: tl.tensor) -> tl.tensor:
    """Return acc + h b, of fp32 h."""
    if b.dtype == tl.float32:
        return tl.dot(h, b, acc, input_precision="ieee")
    high = h.to(b.dtype)
    acc = tl.dot(high, b, acc)
    return tl.dot((h - high.to(tl.float32)).to(b.dtype), b, acc)


@triton.jit
def _tile_of_h(
    entry: tl.tensor,
    r0: tl.tensor,
    rows: tl.tensor,
    ids_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    h_ptr: tl.tensor,
    parts: tl.tensor,
    part_stride: tl.tensor,
    GATHER: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
) -> tl.tensor:
    """Load h[m, r] for RANKS ranks from r0 on, (ROWS, RANKS) fp32.

    Loads bypass the first-level cache, since other blocks have just stored it.
    """
    weight, h_width, a, rank, place, _b_offset, _scale, _bias = entry
    m = tl.arange(0, ROWS)
    r = r0 + tl.arange(0, RANKS)
    mask = (m < rows)[:, None] & (r < rank)[None, :]
    if GATHER:
        ids = tl.load(ids_ptr + m, mask=m < rows, other=0)
        places = arena_ptr + a + ids[:, None] * h_width + place + r[None, :]
        return tl.load(places, mask=mask, other=0.0).to(tl.float32) * weight
    AT_ONCE: tl.constexpr = min(MOST_PARTS, 8)
    places = h_ptr + place + m[:, None] * h_width + r[None, :]
    h = tl.zeros((ROWS, RANKS), tl.float32)
    for first in tl.range(0, parts, AT_ONCE, num_stages=1):
        for part in tl.static_range(AT_ONCE):
            there = tl.where(first + part < parts, rank, 0)
            h += tl.load(
                places + (first + part) * part_stride.to(tl.int64),
                mask=(m < rows)[:, None] & (r < there)[None, :],
                other=0.0,
                cache_modifier=".cg",
            )
    return h
