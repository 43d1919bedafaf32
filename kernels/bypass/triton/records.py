"""How blocks of shrink and expand read their lists (`lists.py`), and how they wait if they are launched early."""

import triton
import triton.language as tl

RECORD_FIELDS = tl.constexpr(8)  # int32 of each record


@triton.jit
def wait() -> None:
    """Wait until all launches ahead are done; the next one may begin from here on. Calling it again does no harm."""
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def aligned(offset: tl.tensor, ALIGN: tl.constexpr) -> tl.tensor:
    """Return the offset, which is a multiple of ALIGN, in a form that the compiler knows to be one.

    Hints such as `multiple_of` are lost on values that a loop carries.
    """
    return offset // ALIGN * ALIGN


@triton.jit
def as_int64(pointer: tl.tensor) -> tl.tensor:
    """Return a pointer to two fields of a record as one int64."""
    return pointer.to(tl.pointer_type(tl.int64), bitcast=True)


@triton.jit
def read_unit(record: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Load row, rows, ranks, place in h, width of h, weight and offset of A, in loads independent of each other."""
    row = tl.load(record, mask=mask, other=0)
    rows = tl.load(record + 1, mask=mask, other=0)
    ranks = tl.load(record + 2, mask=mask, other=0)
    place = tl.load(record + 3, mask=mask, other=0)
    width = tl.load(record + 4, mask=mask, other=0)
    weight = tl.load(record + 5, mask=mask, other=0).to(tl.float32, bitcast=True)
    a = tl.load(as_int64(record + 6), mask=mask, other=0)
    return row, rows, ranks, place, width, weight, a


@triton.jit
def read_tile(record: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Load row, rows, number of entries, and the index of the second entry."""
    row = tl.load(record, mask=mask, other=0)
    rows = tl.load(record + 1, mask=mask, other=0)
    members = tl.load(record + 2, mask=mask, other=0)
    others = tl.load(record + 3, mask=mask, other=0)
    return row, rows, members, others


@triton.jit
def read_entry(record: tl.tensor, site: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Load weight, width of h and offset of A, and the fields of the site whose record is `site` fields on.

    Those are: rank, place in h, offset of B, and the offsets of the fused scale and bias, each plus 1.
    """
    weight = tl.load(record + 4, mask=mask, other=0).to(tl.float32, bitcast=True)
    width = tl.load(record + 5, mask=mask, other=0)
    a = tl.load(as_int64(record + 6), mask=mask, other=0)
    own = record + site
    rank = tl.load(own, mask=mask, other=0)
    place = tl.load(own + 1, mask=mask, other=0)
    b = tl.load(as_int64(own + 2), mask=mask, other=0)
    scale = tl.load(as_int64(own + 4), mask=mask, other=0)
    bias = tl.load(as_int64(own + 6), mask=mask, other=0)
    return weight, width, a, rank, place, b, scale, bias


@triton.jit
def load_b(
    b_ptr: tl.tensor, r: tl.tensor, rank: tl.tensor, n: tl.tensor, n_mask: tl.tensor, width: tl.tensor
) -> tl.tensor:
    """Load ranks r and columns n of B, (rank, width) row-major; 0 beyond them."""
    return tl.load(b_ptr + r[:, None] * width + n[None, :], mask=(r < rank)[:, None] & n_mask[None, :], other=0.0)


@triton.jit
def load_row(row_ptr: tl.tensor, n: tl.tensor, n_mask: tl.tensor) -> tl.tensor:
    return tl.load(row_ptr + n, mask=n_mask, other=0.0).to(tl.float32)
