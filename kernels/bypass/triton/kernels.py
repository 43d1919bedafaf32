"""The bypasses' kernel in Triton, for CUDA and ROCm: shrink and expand of one group in one launch.

    for each tile t of rows:   y[t] += sum over t's entries e:  e.weight · ((x[t] A_eᵀ) B_e + scale_e ⊙ y[t] + bias_e)

The grid is as many programs as the device runs at once, whatever the step is. They share out units of shrink first and
blocks of expand after them, from the lists of `../worklist.py` in device memory, so that a captured launch serves any
step. A block of expand waits on its tile's counter until all units of shrink have arrived, and the last program to
leave sets the counters back to zero. No program takes a block of expand before its own units are done, and all programs
are on the device together, so that none waits for one that cannot run.

    table[slot, group]   int64: offset of A in the arena, sum of ranks, then per site: rank, first column of h, offset
                         of B, and those of a row of scales and of a row of biases, each plus 1; 0 where there is none

h is fp32, (split, entries · rows · ranks): partial sums over the input's features, which the reader adds up in one
order, so that a few rows fill the device without floating-point atomics. Tiles of one row are sums of products where
GEMV is set; all others run on tensor cores, for which fp32 h is cut into two halves of 16 bits: in bf16 it loses its
last 8 bits, in fp16 the last 2 (and must fit, as y must).
"""

import triton
import triton.language as tl

MAX_SITES = 4  # of one launch
TABLE_FIELDS = tl.constexpr(2)
SITE_FIELDS = tl.constexpr(5)
RECORD = tl.constexpr(8)  # int32 fields of each record in the lists


@triton.jit(do_not_specialize=["group", "first_site", "num_counters"])
def bypass_kernel(
    x_ptr: tl.tensor,
    y0_ptr: tl.tensor,
    y1_ptr: tl.tensor,
    y2_ptr: tl.tensor,
    y3_ptr: tl.tensor,
    arena_ptr: tl.tensor,
    table_ptr: tl.tensor,
    list_ptr: tl.tensor,
    h_ptr: tl.tensor,
    counters_ptr: tl.tensor,
    x_stride: tl.tensor,
    y0_stride: tl.tensor,
    y1_stride: tl.tensor,
    y2_stride: tl.tensor,
    y3_stride: tl.tensor,
    in_features: tl.tensor,
    width0: tl.tensor,
    width1: tl.tensor,
    width2: tl.tensor,
    width3: tl.tensor,
    slot_stride: tl.tensor,
    group_stride: tl.tensor,
    group: tl.tensor,
    first_site: tl.tensor,
    num_counters: tl.tensor,
    SHRINK: tl.constexpr,
    EXPAND: tl.constexpr,
    GATHER: tl.constexpr,
    GEMV: tl.constexpr,
    MAX_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """x: (rows, in_features) with row stride x_stride; (rows,) int64 ids if GATHER, and then A is (in_features, rank).

    y0 to y3: (rows, width) of the sites from first_site on, with a width of 0 where there is none; each element is read
    and written once, by one program. counters: int32, one for each tile and, at num_counters, one for the programs that
    have left; all 0 before and after. SHRINK, EXPAND: which halves run; there is nothing to wait for unless both do.
    BLOCK_M is 16 or more: most rows of a tile. ALIGN: all offsets of factors are multiples of so many elements.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    FUSED: tl.constexpr = SHRINK and EXPAND and not GATHER
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    header = list_ptr + group * RECORD
    split = tl.load(header + 4)
    h_size = tl.load(header + 5).to(tl.int64)
    num_shrinks = tl.load(header + 1) * split
    table_ptr += group * group_stride
    if SHRINK and not GATHER:
        units = list_ptr + tl.load(header) * RECORD
        chunk = tl.cdiv(tl.cdiv(in_features, split), BLOCK_K) * BLOCK_K
        for item in range(pid, num_shrinks, programs):
            unit = units + item // split * RECORD
            part = item % split
            k0 = part * chunk
            k1 = tl.minimum(k0 + chunk, in_features)
            slot = table_ptr + tl.load(unit).to(tl.int64) * slot_stride
            x = x_ptr + tl.load(unit + 1).to(tl.int64) * x_stride
            a = arena_ptr + tl.multiple_of(tl.load(slot), ALIGN)
            h = h_ptr + part * h_size
            if GEMV and tl.load(unit + 2) == 1:
                _shrink(unit, slot + 1, x, x_stride, a, in_features, h, k0, k1, 1, BLOCK_R, BLOCK_K)
            else:
                _shrink(unit, slot + 1, x, x_stride, a, in_features, h, k0, k1, BLOCK_M, BLOCK_R, BLOCK_K)
            if FUSED:
                tl.debug_barrier()  # all of the program's stores come before its arrival
                tl.atomic_add(counters_ptr + tl.load(unit + 5), 1, sem="release")
    if EXPAND:
        tiles = list_ptr + tl.load(header + 2) * RECORD
        num_tiles = tl.load(header + 3)
        end0 = tl.cdiv(width0, BLOCK_N)
        end1 = end0 + tl.cdiv(width1, BLOCK_N)
        end2 = end1 + tl.cdiv(width2, BLOCK_N)
        num_blocks = end2 + tl.cdiv(width3, BLOCK_N)
        first = (pid + programs - num_shrinks % programs) % programs  # go on behind the last unit of shrink
        for item in range(first, num_tiles * num_blocks, programs):
            tile = tiles + item // num_blocks * RECORD
            counter = counters_ptr + item // num_blocks
            block = item % num_blocks
            site = (block >= end0).to(tl.int32) + (block >= end1).to(tl.int32) + (block >= end2).to(tl.int32)
            n0 = (block - _pick(site, 0, end0, end1, end2)) * BLOCK_N
            width = _pick(site, width0, width1, width2, width3)
            stride = _pick(site, y0_stride, y1_stride, y2_stride, y3_stride)
            row = tl.load(tile).to(tl.int64)
            y = _pick(site, y0_ptr, y1_ptr, y2_ptr, y3_ptr) + row * stride
            field = TABLE_FIELDS + (first_site + site) * SITE_FIELDS
            source = x_ptr + row if GATHER else h_ptr
            # fmt: off
            if GEMV and tl.load(tile + 1) == 1:
                _expand(tile, source, y, stride, width, n0, arena_ptr, table_ptr, slot_stride, field, list_ptr, h_size,
                        split, counter, FUSED, GATHER, MAX_SPLIT, 1, BLOCK_R, BLOCK_N, ALIGN)
            else:
                _expand(tile, source, y, stride, width, n0, arena_ptr, table_ptr, slot_stride, field, list_ptr, h_size,
                        split, counter, FUSED, GATHER, MAX_SPLIT, BLOCK_M, BLOCK_R, BLOCK_N, ALIGN)
            # fmt: on
        if FUSED:
            left = counters_ptr + num_counters
            if tl.atomic_add(left, 1, sem="acq_rel") == programs - 1:
                for index in range(num_tiles):
                    tl.store(counters_ptr + index, 0)
                tl.store(left, 0)


@triton.jit
def _pick(index: tl.tensor, v0: tl.tensor, v1: tl.tensor, v2: tl.tensor, v3: tl.tensor) -> tl.tensor:
    return tl.where(index < 2, tl.where(index == 0, v0, v1), tl.where(index == 2, v2, v3))


@triton.jit
def _shrink(
    unit: tl.tensor,
    rank_ptr: tl.tensor,
    x_ptr: tl.tensor,
    x_stride: tl.tensor,
    a_ptr: tl.tensor,
    in_features: tl.tensor,
    h_ptr: tl.tensor,
    k_start: tl.tensor,
    k_end: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """h[m, r] = weight · sum over k in [k_start, k_end) of x[m, k] · A[r, k], for a unit's rows and BLOCK_R ranks.

    rank: of A, which may have nothing from the unit's first one on.
    """
    num_rows = tl.load(unit + 2)
    rank = tl.load(rank_ptr).to(tl.int32)
    first = tl.load(unit + 4)
    k_end = tl.where(first < rank, k_end, k_start)
    weight = tl.load(unit + 6).to(tl.float32, bitcast=True)
    m = tl.arange(0, BLOCK_M)
    r = first + tl.arange(0, BLOCK_R)
    m_mask = m < num_rows
    r_mask = r < rank
    x_rows = x_ptr + m[:, None].to(tl.int64) * x_stride
    a_rows = a_ptr + r[:, None].to(tl.int64) * in_features
    sums = tl.zeros((BLOCK_R, BLOCK_K) if BLOCK_M == 1 else (BLOCK_M, BLOCK_R), tl.float32)
    for k0 in range(k_start, k_end, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        k_mask = k < k_end
        x = tl.load(x_rows + k[None, :], mask=m_mask[:, None] & k_mask[None, :], other=0.0)
        a = tl.load(a_rows + k[None, :], mask=r_mask[:, None] & k_mask[None, :], other=0.0)
        if BLOCK_M == 1:
            sums += x.to(tl.float32) * a.to(tl.float32)
        else:
            sums = tl.dot(x, tl.trans(a), sums, input_precision="ieee")
    h = tl.sum(sums, 1)[None, :] if BLOCK_M == 1 else sums
    out = h_ptr + tl.load(unit + 3) + m[:, None] * tl.load(unit + 7) + r[None, :]
    tl.store(out, h * weight, mask=m_mask[:, None] & r_mask[None, :])


@triton.jit
def _expand(
    tile: tl.tensor,
    source_ptr: tl.tensor,
    y_ptr: tl.tensor,
    y_stride: tl.tensor,
    width: tl.tensor,
    n_start: tl.tensor,
    arena_ptr: tl.tensor,
    table_ptr: tl.tensor,
    slot_stride: tl.tensor,
    field: tl.tensor,
    list_ptr: tl.tensor,
    h_size: tl.tensor,
    split: tl.tensor,
    counter: tl.tensor,
    WAIT: tl.constexpr,
    GATHER: tl.constexpr,
    MAX_SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """y[m, n] += sum over the tile's entries, and over r, of h[m, column + r] · B[r, n], and their scales and biases.

    source: h, or the tile's ids if GATHER. field: of the site in the table. Of a single row, y and the first of B are
    read before the wait, so that the memory is busy meanwhile; more rows would take too many registers.
    """
    first_entry = list_ptr + tl.load(tile + 2) * RECORD
    m = tl.arange(0, BLOCK_M)
    n = n_start + tl.arange(0, BLOCK_N)
    m_mask = m < tl.load(tile + 1)
    n_mask = n < width
    y = y_ptr + m[:, None].to(tl.int64) * y_stride + n[None, :]
    y_mask = m_mask[:, None] & n_mask[None, :]
    if BLOCK_M == 1:
        old = tl.load(y, mask=y_mask, other=0.0)
        fields = table_ptr + tl.load(first_entry).to(tl.int64) * slot_stride + field
        b_ptr = arena_ptr + tl.multiple_of(tl.load(fields + 2), ALIGN)
        b = _load_b(b_ptr, 0, tl.load(fields), n, n_mask, width, BLOCK_R)
    if WAIT:
        arrivals = tl.load(tile + 4) * split
        while tl.load(counter, volatile=True) < arrivals:
            pass
        tl.atomic_add(counter, 0, sem="acquire")  # what the others stored before they arrived is read after this
        tl.debug_barrier()
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_low = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    scales = tl.zeros((1, BLOCK_N), tl.float32)
    touched = tl.zeros((), tl.int64)
    for index in range(tl.load(tile + 3)):
        entry = first_entry + index * RECORD
        a_offset = table_ptr + tl.load(entry).to(tl.int64) * slot_stride
        fields = a_offset + field
        rank = tl.load(fields).to(tl.int32)
        column = tl.load(fields + 1).to(tl.int32)
        b_ptr = arena_ptr + tl.multiple_of(tl.load(fields + 2), ALIGN)
        total = tl.load(a_offset + 1).to(tl.int32) if GATHER else tl.load(entry + 2)
        weight = tl.load(entry + 3).to(tl.float32, bitcast=True)
        for r0 in tl.range(0, rank, BLOCK_R, num_stages=1):
            if BLOCK_M > 1 or index + r0 > 0:
                b = _load_b(b_ptr, r0, rank, n, n_mask, width, BLOCK_R)
            r = r0 + tl.arange(0, BLOCK_R)
            mask = m_mask[:, None] & (r < rank)[None, :]
            if GATHER:
                ids = tl.load(source_ptr + m, mask=m_mask, other=0)
                a = arena_ptr + tl.load(a_offset) + ids[:, None] * total + column + r[None, :]
                h = tl.load(a, mask=mask, other=0.0).to(tl.float32) * weight
            else:
                h_rows = source_ptr + tl.load(entry + 1) + column + m[:, None] * total + r[None, :]
                h = _load_h(h_rows, mask, h_size, split, MAX_SPLIT)
            if BLOCK_M == 1:
                acc += tl.sum(tl.trans(h) * b.to(tl.float32), 0)[None, :]
            elif b.dtype == tl.float32:
                acc = tl.dot(h, b, acc, input_precision="ieee")
            else:
                high = h.to(b.dtype)
                acc = tl.dot(high, b, acc)
                acc_low = tl.dot((h - high.to(tl.float32)).to(b.dtype), b, acc_low)
        scale = tl.load(fields + 3)
        bias = tl.load(fields + 4)
        touched += rank + scale + bias
        if scale > 0:
            scales += weight * _load_row(arena_ptr + scale - 1, n, n_mask)
        if bias > 0:
            acc += weight * _load_row(arena_ptr + bias - 1, n, n_mask)
    if touched > 0:
        if BLOCK_M > 1:
            old = tl.load(y, mask=y_mask, other=0.0)
        tl.store(y, (old.to(tl.float32) + (old.to(tl.float32) * scales + (acc + acc_low))).to(old.dtype), mask=y_mask)


@triton.jit
def _load_b(
    b_ptr: tl.tensor,
    first: tl.tensor,
    rank: tl.tensor,
    n: tl.tensor,
    n_mask: tl.tensor,
    width: tl.tensor,
    BLOCK_R: tl.constexpr,
) -> tl.tensor:
    r = first + tl.arange(0, BLOCK_R)
    b_rows = b_ptr + r[:, None].to(tl.int64) * width
    return tl.load(b_rows + n[None, :], mask=(r < rank)[:, None] & n_mask[None, :], other=0.0)


@triton.jit
def _load_row(row_ptr: tl.tensor, n: tl.tensor, n_mask: tl.tensor) -> tl.tensor:
    return tl.load(row_ptr + n[None, :], mask=n_mask[None, :], other=0.0).to(tl.float32)


@triton.jit
def _load_h(
    h_rows: tl.tensor, mask: tl.tensor, h_size: tl.tensor, split: tl.tensor, MAX_SPLIT: tl.constexpr
) -> tl.tensor:
    """The partial sums, added up in one order. Past the first-level cache: other programs have just stored them."""
    if h_rows.shape[0] == 1:
        parts = tl.arange(0, MAX_SPLIT)[:, None]
        h = tl.load(h_rows + parts * h_size, mask=mask & (parts < split), other=0.0, cache_modifier=".cg")
        return tl.sum(h, 0)[None, :]
    h = tl.load(h_rows, mask=mask, other=0.0, cache_modifier=".cg")
    for part in tl.static_range(1, MAX_SPLIT):
        there = tl.full(mask.shape, part, tl.int32) < split
        h += tl.load(h_rows + part * h_size, mask=mask & there, other=0.0, cache_modifier=".cg")
    return h
