"""The second of a group's two launches: h times B, added to the outputs of the group's sites.

    for each tile t of rows:   y[t] += sum over t's entries e:  h[e] B_e + e.weight · (scale_e ⊙ y[t] + bias_e)

A block takes some columns of one site for one tile (`lists.py`), and waits for no other: it alone reads its columns of
y, adds in fp32 and rounds. h is the sum of its parts, always in the same order. For groups whose input is ids there is
no shrink: h is e.weight times a row of A.

Tiles of one row are sums of products. Others run on tensor cores (`expand_tile.py`).

Where EARLY, a block may run before the kernel ahead has ended. That is the group's shrink, which waited for all that
was enqueued before it: y is complete, and may be read. h may not.
"""

import triton
import triton.language as tl

from .expand_tile import add_tile
from .records import RECORD_FIELDS, aligned, load_b, load_row, read_entry, read_tile, wait

MAX_SITES = 4  # of one launch


@triton.jit(do_not_specialize=["group", "first_site"])
def expand_kernel(
    ids_ptr: tl.tensor,
    y0_ptr: tl.tensor,
    y1_ptr: tl.tensor,
    y2_ptr: tl.tensor,
    y3_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    records_ptr: tl.tensor,
    list_ptr: tl.tensor,
    h_ptr: tl.tensor,
    y0_stride: tl.tensor,
    y1_stride: tl.tensor,
    y2_stride: tl.tensor,
    y3_stride: tl.tensor,
    width0: tl.tensor,
    width1: tl.tensor,
    width2: tl.tensor,
    width3: tl.tensor,
    parts: tl.tensor,
    part_stride: tl.tensor,
    records_stride: tl.tensor,
    first_entry: tl.tensor,
    group: tl.tensor,
    first_site: tl.tensor,
    SITES: tl.constexpr,
    GATHER: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NARROW: tl.constexpr,
    WALKED: tl.constexpr,
    STAGES: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Add to the outputs of up to four sites, for tile after tile.

    y0 to y3: (rows, width) of the sites from first_site on, with a width of 0 where there is none. ids: (rows,) int64
    if GATHER. h: fp32, (parts, part_stride), of at most MOST_PARTS parts. The grid is (blocks of columns over all
    sites, tiles); a program goes on with the tile as many further on as the grid has. SITES: of a record. NARROW:
    columns at a time, of single rows with more than one adapter, or a fused scale or bias.
    """
    piece = tl.program_id(0)
    end0 = tl.cdiv(width0, COLUMNS * WALKED)
    end1 = end0 + tl.cdiv(width1, COLUMNS * WALKED)
    end2 = end1 + tl.cdiv(width2, COLUMNS * WALKED)
    site = (piece >= end0).to(tl.int32) + (piece >= end1).to(tl.int32) + (piece >= end2).to(tl.int32)
    n_start = (piece - _pick(site, 0, end0, end1, end2)) * (COLUMNS * WALKED)
    width = _pick(site, width0, width1, width2, width3)
    y_stride = _pick(site, y0_stride, y1_stride, y2_stride, y3_stride)
    y_ptr = _pick(site, y0_ptr, y1_ptr, y2_ptr, y3_ptr)

    count = tl.load(list_ptr + group * RECORD_FIELDS + 3)
    entries = records_ptr + group.to(tl.int64) * records_stride + first_entry
    own = (1 + first_site + site) * RECORD_FIELDS
    SIZE: tl.constexpr = (1 + SITES) * RECORD_FIELDS
    first = tl.program_id(1)
    row, rows, members, others = read_tile(entries + first * SIZE, first >= 0)
    entry = read_entry(entries + first * SIZE, own, first >= 0)
    for tile in range(first, count, tl.num_programs(1)):
        y = y_ptr + row.to(tl.int64) * y_stride
        ids = ids_ptr + row
        if rows > 0:
            if ROWS == 1:
                _, _, _, _, _, _, scale, bias = entry
                if members == 1 and scale + bias == 0:
                    for block in tl.static_range(WALKED):
                        # fmt: off
                        _add_row(entry, ids, y, width, n_start + block * COLUMNS, arena_ptr, h_ptr, parts, part_stride,
                                 GATHER, RANKS, COLUMNS, MOST_PARTS, ALIGN, EARLY)
                        # fmt: on
                else:
                    if EARLY:
                        wait()
                    for n0 in range(n_start, n_start + COLUMNS * WALKED, NARROW):
                        # fmt: off
                        _add_mixed_row(entry, members, entries + others * SIZE, own, ids, y, width, n0, arena_ptr,
                                       h_ptr, parts, part_stride, SIZE, GATHER, RANKS, NARROW, MOST_PARTS, ALIGN)
                        # fmt: on
            else:
                if EARLY:
                    wait()
                # fmt: off
                add_tile(entry, rows, members, entries + others * SIZE, own, ids, y, y_stride, width, n_start,
                         arena_ptr, h_ptr, parts, part_stride, SIZE, GATHER, ROWS, RANKS, COLUMNS, WALKED, STAGES,
                         MOST_PARTS, ALIGN)
                # fmt: on
        following = tile + tl.num_programs(1)
        row, rows, members, others = read_tile(entries + following * SIZE, following < count)
        entry = read_entry(entries + following * SIZE, own, following < count)
    if EARLY:
        wait()


@triton.jit
def _pick(index: tl.tensor, v0: tl.tensor, v1: tl.tensor, v2: tl.tensor, v3: tl.tensor) -> tl.tensor:
    return tl.where(index < 2, tl.where(index == 0, v0, v1), tl.where(index == 2, v2, v3))


@triton.jit
def _add_row(
    entry: tl.tensor,
    ids_ptr: tl.tensor,
    y_ptr: tl.tensor,
    width: tl.tensor,
    n_start: tl.tensor,
    arena_ptr: tl.tensor,
    h_ptr: tl.tensor,
    parts: tl.tensor,
    part_stride: tl.tensor,
    GATHER: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Add to y[n] for one row of one adapter. y and the first of B are loaded before h is waited for."""
    n = n_start + tl.arange(0, COLUMNS)
    n_mask = n < width
    _, _, _, rank, _, b_offset, _, _ = entry
    y_mask = n < tl.where(rank > 0, width, 0)  # what is left alone is not read
    old = tl.load(y_ptr + n, mask=y_mask, other=0.0)
    b_ptr = arena_ptr + aligned(b_offset, ALIGN)
    r = tl.arange(0, RANKS)
    b = load_b(b_ptr, r, rank, n, n_mask, width)
    if EARLY:
        wait()
    h = _row_of_h(entry, 0, ids_ptr, arena_ptr, h_ptr, parts, part_stride, GATHER, RANKS, MOST_PARTS)
    acc = tl.sum(h[:, None] * b.to(tl.float32), 0)
    for r0 in range(RANKS, rank, RANKS):
        h = _row_of_h(entry, r0, ids_ptr, arena_ptr, h_ptr, parts, part_stride, GATHER, RANKS, MOST_PARTS)
        acc += tl.sum(h[:, None] * load_b(b_ptr, r0 + r, rank, n, n_mask, width).to(tl.float32), 0)
    tl.store(y_ptr + n, (old.to(tl.float32) + acc).to(y_ptr.dtype.element_ty), mask=y_mask)


@triton.jit
def _add_mixed_row(
    entry: tl.tensor,
    members: tl.tensor,
    others: tl.tensor,
    own: tl.tensor,
    ids_ptr: tl.tensor,
    y_ptr: tl.tensor,
    width: tl.tensor,
    n_start: tl.tensor,
    arena_ptr: tl.tensor,
    h_ptr: tl.tensor,
    parts: tl.tensor,
    part_stride: tl.tensor,
    SIZE: tl.constexpr,
    GATHER: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """Add to y[n] for one row in the general case: mixtures, fused scales and biases."""
    n = n_start + tl.arange(0, COLUMNS)
    n_mask = n < width
    r = tl.arange(0, RANKS)
    acc = tl.zeros((COLUMNS,), tl.float32)
    scales = tl.zeros((COLUMNS,), tl.float32)
    touched = tl.zeros((), tl.int64)
    for index in range(members):
        weight, _h_width, _a, rank, _place, b_offset, scale, bias = entry
        b_ptr = arena_ptr + aligned(b_offset, ALIGN)
        for r0 in range(0, rank, RANKS):
            h = _row_of_h(entry, r0, ids_ptr, arena_ptr, h_ptr, parts, part_stride, GATHER, RANKS, MOST_PARTS)
            acc += tl.sum(h[:, None] * load_b(b_ptr, r0 + r, rank, n, n_mask, width).to(tl.float32), 0)
        if scale > 0:
            scales += weight * load_row(arena_ptr + aligned(scale - 1, ALIGN), n, n_mask)
        if bias > 0:
            acc += weight * load_row(arena_ptr + aligned(bias - 1, ALIGN), n, n_mask)
        touched += rank + scale + bias
        entry = read_entry(others + index * SIZE, own, members > index + 1)
    mask = n < tl.where(touched > 0, width, 0)
    old = tl.load(y_ptr + n, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_ptr + n, (old + (old * scales + acc)).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _row_of_h(
    entry: tl.tensor,
    r0: tl.tensor,
    ids_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    h_ptr: tl.tensor,
    parts: tl.tensor,
    part_stride: tl.tensor,
    GATHER: tl.constexpr,
    RANKS: tl.constexpr,
    MOST_PARTS: tl.constexpr,
) -> tl.tensor:
    """Load h[r] for RANKS ranks from r0 on, (RANKS,) fp32.

    Loads bypass the first-level cache, since other blocks have just stored it.
    """
    weight, h_width, a, rank, place, _b_offset, _scale, _bias = entry
    r = r0 + tl.arange(0, RANKS)
    if GATHER:
        row = arena_ptr + a + tl.load(ids_ptr) * h_width + place
        return tl.load(row + r, mask=r < rank, other=0.0).to(tl.float32) * weight
    p = tl.arange(0, MOST_PARTS)[:, None]
    places = h_ptr + place + (p * part_stride + r[None, :])
    there = tl.load(places, mask=(p < parts) & (r < rank)[None, :], other=0.0, cache_modifier=".cg")
    return tl.sum(there, 0)
