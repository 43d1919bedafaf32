"""The kernel that looks up, at the head of a step, where each group's work finds its factors.

It joins the step's lists (`../worklist.py`) with the slots' table, and writes records in which a block of shrink or
expand finds all it needs with one round of loads:

    table[slot, group]   int64: offset of A in the arena, sum of ranks, then per site: rank, first column of h, offset
                         of B, and those of the fused scale and of the fused bias, each plus 1; 0 where there is none
    unit                 int32: first row, rows, ranks, place in h, width of h, bits of the weight; int64: offset of A
    entry                int32: first row, rows, entries of its tile, the second of them, bits of the weight, width of h
                         (sum of ranks where A is gathered); int64: offset of A; then a record for each site
    site                 int32: rank, place in h (first column of A where it is gathered); int64: offset of B, and of
                         the fused scale and bias, as in the table

Each of them is RECORD_FIELDS int32 long, an entry one more such record for each site. Units and tiles that a group has
nothing for have 0 rows.
"""

import triton
import triton.language as tl

from .records import RECORD_FIELDS, as_int64

TABLE_FIELDS = tl.constexpr(2)
SITE_FIELDS = tl.constexpr(5)
BLOCK = 64  # records that a program writes at once
WARPS = 2


@triton.jit
def lists_kernel(
    list_ptr: tl.tensor,
    table_ptr: tl.tensor,
    records_ptr: tl.tensor,
    slot_stride: tl.tensor,
    group_stride: tl.tensor,
    records_stride: tl.tensor,
    first_entry: tl.tensor,
    SITES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the records of each group's units and entries.

    list: (records,) the step's headers and lists. records: (groups, records_stride) int32; a group's entries begin at
    first_entry, its units at 0. The grid is (blocks, groups); each program takes every blocks-th block of a group's
    lists.
    """
    group = tl.program_id(1)
    header = list_ptr + group * RECORD_FIELDS
    table_ptr += group * group_stride
    records_ptr += group.to(tl.int64) * records_stride
    first, step = tl.program_id(0) * BLOCK, tl.num_programs(0) * BLOCK
    num_units, num_entries = tl.load(header + 1), tl.load(header + 4)
    units = list_ptr + tl.load(header) * RECORD_FIELDS
    entries = list_ptr + tl.load(header + 2) * RECORD_FIELDS
    most_ranks = tl.load(header + 5)
    in_features = tl.load(header + 6)
    gathers = tl.load(header + 7) > 0
    for start in range(first, num_units, step):
        _write_units(units, table_ptr, records_ptr, start, num_units, slot_stride, most_ranks, in_features, BLOCK)
    for start in range(first, num_entries, step):
        _write_entries(
            entries, table_ptr, records_ptr + first_entry, start, num_entries, slot_stride, gathers, SITES, BLOCK
        )


@triton.jit
def _write_units(
    units: tl.tensor,
    table_ptr: tl.tensor,
    records_ptr: tl.tensor,
    start: tl.tensor,
    count: tl.tensor,
    slot_stride: tl.tensor,
    most_ranks: tl.tensor,
    in_features: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    index = start + tl.arange(0, BLOCK)
    mask = index < count
    unit = units + index * RECORD_FIELDS
    slot = table_ptr + tl.load(unit, mask=mask, other=0).to(tl.int64) * slot_stride
    first = tl.load(unit + 4, mask=mask, other=0)
    rank = tl.load(slot + 1, mask=mask, other=0).to(tl.int32)
    ranks = tl.minimum(tl.maximum(rank - first, 0), most_ranks)
    a = tl.load(slot, mask=mask, other=0) + first.to(tl.int64) * in_features
    out = records_ptr + index * RECORD_FIELDS
    tl.store(out, tl.load(unit + 1, mask=mask), mask=mask)
    tl.store(out + 1, tl.where(ranks > 0, tl.load(unit + 2, mask=mask), 0), mask=mask)
    tl.store(out + 2, ranks, mask=mask)
    tl.store(out + 3, tl.load(unit + 3, mask=mask) + first, mask=mask)
    tl.store(out + 4, tl.load(unit + 5, mask=mask), mask=mask)
    tl.store(out + 5, tl.load(unit + 6, mask=mask), mask=mask)
    tl.store(as_int64(out + 6), a, mask=mask)


@triton.jit
def _write_entries(
    entries: tl.tensor,
    table_ptr: tl.tensor,
    records_ptr: tl.tensor,
    start: tl.tensor,
    count: tl.tensor,
    slot_stride: tl.tensor,
    gathers: tl.tensor,
    SITES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    index = start + tl.arange(0, BLOCK)
    mask = index < count
    entry = entries + index * RECORD_FIELDS
    slot = table_ptr + tl.load(entry, mask=mask, other=0).to(tl.int64) * slot_stride
    place = tl.where(gathers, 0, tl.load(entry + 5, mask=mask, other=0))
    out = records_ptr + index * RECORD_FIELDS * (1 + SITES)
    works = tl.zeros((BLOCK,), tl.int64)
    for site in range(SITES):
        fields = slot + TABLE_FIELDS + site * SITE_FIELDS
        rank = tl.load(fields, mask=mask, other=0)
        column = tl.load(fields + 1, mask=mask, other=0)
        scale = tl.load(fields + 3, mask=mask, other=0)
        bias = tl.load(fields + 4, mask=mask, other=0)
        own = out + RECORD_FIELDS * (1 + site)
        tl.store(own, rank.to(tl.int32), mask=mask)
        tl.store(own + 1, place + column.to(tl.int32), mask=mask)
        tl.store(as_int64(own + 2), tl.load(fields + 2, mask=mask, other=0), mask=mask)
        tl.store(as_int64(own + 4), scale, mask=mask)
        tl.store(as_int64(own + 6), bias, mask=mask)
        works += rank + scale + bias
    alone = tl.load(entry + 3, mask=mask, other=0) == 1
    total = tl.load(slot + 1, mask=mask, other=0).to(tl.int32)
    width = tl.where(gathers, total, tl.load(entry + 6, mask=mask, other=0))
    tl.store(out, tl.load(entry + 1, mask=mask), mask=mask)
    tl.store(out + 1, tl.where(alone & (works == 0), 0, tl.load(entry + 2, mask=mask)), mask=mask)
    tl.store(out + 2, tl.load(entry + 3, mask=mask), mask=mask)
    tl.store(out + 3, tl.load(entry + 4, mask=mask), mask=mask)
    tl.store(out + 4, tl.load(entry + 7, mask=mask), mask=mask)
    tl.store(out + 5, width, mask=mask)
    tl.store(as_int64(out + 6), tl.load(slot, mask=mask, other=0), mask=mask)
