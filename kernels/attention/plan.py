"""A step's paged attention as lists that the Triton kernels read from device memory. Host only, no torch.

A sequence's queries of one kv head are numbered token · group + head, and cut into tiles of `block_m`. The keys that a
tile sees are cut into as many parts as fill the device. Each part of each tile is an item; the kernel runs it once for
each kv head. Layers of one shape share their items. All are int32:

    headers     for each plan: first item, items
    positions   for each row: where its key and value lie, page · page_size + place; -1 if nowhere
    pages       those of each span in a row
    item        first row of its sequence, first query, end of the sequence's queries, keys before the first row,
                first page, first key, end of keys, splits of the tile, the tile's first slot, number of the split

Places of items and pages count from the first header. Slots hold partial sums, for tiles of several splits.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..device.step_memory import ALIGNMENT
from ..integers import Ints, cdiv, repeated
from .layout import Limits, Reach, Span, SpanTable, columns_of
from .page_tables import PageTables

HEADER_FIELDS, ITEM_FIELDS = 2, 10
_UNITS_OF_SPLITS = 4  # most units that have partial sums, for each program

Fields = npt.NDArray[np.int32]


class PlanShape(NamedTuple):
    """What a plan depends on beside the step. block_m: queries of a tile. block_n: keys that a program takes at once.

    programs: how many run at once.
    """

    group: int
    kv_heads: int
    reach: Reach
    block_m: int
    block_n: int
    programs: int


class SpanArrays(NamedTuple):
    """The spans of a step as arrays (spans,), and one more span without positions for the rows that no span has.

    first_page: place of each span's first page in `pages`, which holds those of all spans.
    """

    row: Ints
    rows: Ints
    total: Ints
    first_page: Ints
    pages: Fields

    @property
    def longest(self) -> int:
        """Count the rows of the longest span; 0 without any."""
        return int(self.rows[self.total > 0].max(initial=0))


def span_arrays(spans: Sequence[Span], num_rows: int, page_size: int) -> SpanArrays:
    """Make the arrays of a step.

    Raises ValueError if a span has more positions than its pages hold, or fewer than rows.
    """
    row, rows, total, lists = columns_of(spans)
    tables = PageTables(sum(map(len, lists)))
    tables.update(lists)
    return SpanArrayBuffers(len(lists)).step(SpanTable(row, rows, total, lists), num_rows, tables, page_size)


class SpanArrayBuffers:
    """Makes the arrays of each step in the same memory: they hold until the next step. most_spans: of any step."""

    def __init__(self, most_spans: int) -> None:
        self._fields = np.zeros((4, most_spans + 1), dtype=np.int64)

    def step(self, spans: Sequence[Span], num_rows: int, tables: PageTables, page_size: int) -> SpanArrays:
        """Make the arrays of a step. tables: of the spans' pages. Raises ValueError as `span_arrays` does."""
        row, rows, total, lists = columns_of(spans)
        count = len(lists)
        assert count < self._fields.shape[1], "a step beyond the limits"
        if (tables.counts * page_size < total).any() or (rows > total).any():
            raise ValueError("a span has more positions than its pages hold, or fewer than rows")
        used = int(rows.sum())
        fields = self._fields[:, : count + (used < num_rows)]
        for field, column in zip(fields, (row, rows, total, tables.first), strict=True):
            field[:count] = column
        if used < num_rows:
            fields[:, count] = used, num_rows - used, 0, 0
        return SpanArrays(fields[0], fields[1], fields[2], fields[3], tables.flat)


def without(step: SpanArrays, spans: Collection[int]) -> SpanArrays:
    """Remove some spans; the others keep their rows and pages."""
    gone = list(spans)
    row, rows, total, first_page = (np.delete(column, gone) for column in step[:4])
    return SpanArrays(row, rows, total, first_page, step.pages)


def positions_of(step: SpanArrays, page_size: int) -> Ints:
    """Return the place in the cache of each row, (rows,); -1 for rows of no span."""
    rows = np.where(step.total > 0, step.rows, 0)
    if (rows == 1).all():
        return _places(step, step.first_page, step.total - 1, page_size)
    span, offset = repeated(rows)
    positions = np.full(int(step.rows.sum()), -1, dtype=np.int64)
    there = _places(step, step.first_page[span], (step.total - rows)[span] + offset, page_size)
    positions[step.row[span] + offset] = there
    return positions


def _places(step: SpanArrays, first_page: Ints, position: Ints, page_size: int) -> Ints:
    page: Ints = step.pages[first_page + position // page_size].astype(np.int64)
    return page * page_size + position % page_size


def most_slots(shape: PlanShape) -> int:
    """Return how many slots any step takes: where more would hold partial sums, keys are not split."""
    return _UNITS_OF_SPLITS * shape.programs // shape.kv_heads


def most_fields(plans: Sequence[Sequence[PlanShape]], limits: Limits, page_size: int) -> int:
    """Return how many int32 fields positions, pages and items of any step within the limits take.

    plans: for each, the shapes of which a step takes one.
    """
    items = sum(max(most_items(shape, limits) for shape in shapes) for shapes in plans)
    padding = ALIGNMENT * (len(plans) + 2)
    return limits.rows + most_pages(limits, page_size) + items * ITEM_FIELDS + padding


def most_pages(limits: Limits, page_size: int) -> int:
    """Return how many pages all sequences of a step have together."""
    return limits.spans * cdiv(limits.positions, page_size)


def most_items(shape: PlanShape, limits: Limits) -> int:
    """Return how many items a step within the limits can have.

    A span's last tile may hold less than others. One span more stands for the rows that no sequence has.
    """
    tiles = limits.rows * shape.group // shape.block_m + min(limits.spans, limits.rows) + 1
    return tiles + most_slots(shape)
