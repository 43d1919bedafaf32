"""What blocks of shrink and expand read of their lists (`lists.py`), and how they wait if they are launched early."""

import triton
import triton.language as tl

RECORD_FIELDS = tl.constexpr(8)  # int32 of each record


@triton.jit
def wait() -> None:
    """Until all launches ahead are done; the next one may begin from here on. To do it again is no harm."""
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def aligned(offset: tl.tensor, ALIGN: tl.constexpr) -> tl.tensor:
    """The offset, which is a multiple of ALIGN, as the compiler knows it to be one: hints are lost on what a loop
    carries.
    """
    return offset // ALIGN * ALIGN


@triton.jit
def as_int64(pointer: tl.tensor) -> tl.tensor:
    """Two fields of a record as one."""
    return pointer.to(tl.pointer_type(tl.int64), bitcast=True)


@triton.jit
def read_unit(record: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Row, rows, ranks, place in h, width of h, weight, offset of A: in loads that do not wait for each other."""
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
    """Row, rows, number of entries, which is the second of them."""
    row = tl.load(record, mask=mask, other=0)
    rows = tl.load(record + 1, mask=mask, other=0)
    members = tl.load(record + 2, mask=mask, other=0)
    others = tl.load(record + 3, mask=mask, other=0)
    return row, rows, members, others


@triton.jit
def read_entry(record: tl.tensor, site: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """Weight, width of h, offset of A, and of the site whose record is `site` fields on: rank, place in h, offset of B,
    and those of the rows of scales and of biases, each plus 1.
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
    """Ranks r and columns n of B, (rank, width) row-major; 0 beyond them."""
    return tl.load(b_ptr + r[:, None] * width + n[None, :], mask=(r < rank)[:, None] & n_mask[None, :], other=0.0)


@triton.jit
def load_row(row_ptr: tl.tensor, n: tl.tensor, n_mask: tl.tensor) -> tl.tensor:
    return tl.load(row_ptr + n, mask=n_mask, other=0.0).to(tl.float32)
