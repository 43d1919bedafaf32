"""A step's paged attention as lists that the Triton kernels read from device memory. Host only, no torch.

A sequence's queries of one kv head are numbered token · group + head, and cut into tiles of `block_m`. The keys that a
tile sees are cut into as many parts as fill the device. Each part of each tile is an item; the kernel runs it once for
each kv head. Layers of one shape share their items. All is one array of int32:

    headers     for each plan: first item, items
    positions   for each row: where its key and value lie, page · page_size + place; -1 if nowhere
    pages       those of each span, one after the other
    item        first row of its sequence, first query, end of the sequence's queries, keys before the first row,
                first page, first key, end of keys, splits of the tile, the tile's first slot, number of the split

Places of items and pages count from the array's first element. Slots hold partial sums, for tiles of several splits.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .attention import Limits, Span

HEADER_FIELDS, ITEM_FIELDS = 2, 10
_UNIT_COST = 1  # in blocks of keys: what it costs to begin and end a unit
_SPLIT_COST = 1  # in blocks of keys: what it costs to add up partial sums
_UNITS_OF_SPLITS = 4  # most units that have partial sums, for each program

Ints = npt.NDArray[np.int64]

_PARTS: Ints = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128])


class Shape(NamedTuple):
    """What a plan depends on beside the step. block_m: queries of a tile. block_n: keys that a program takes at once.

    programs: how many run at once. splits: whether keys may be split.
    """

    group: int
    kv_heads: int
    window: int | None
    block_m: int
    block_n: int
    programs: int
    splits: bool = True


class Step(NamedTuple):
    """The spans as arrays (spans,), and one more without positions for the rows that no span has.

    first_page: in pages, which are those of all spans one after the other.
    """

    row: Ints
    rows: Ints
    total: Ints
    first_page: Ints
    pages: Ints

    @property
    def longest(self) -> int:
        """Rows of the longest span; 0 without any."""
        return int(self.rows[self.total > 0].max(initial=0))


class Items(NamedTuple):
    """items: (n, ITEM_FIELDS), pages counting from the first span's first. slots: how many hold partial sums."""

    items: Ints
    slots: int


def step_of(spans: Sequence[Span], num_rows: int, page_size: int) -> Step:
    """Raises ValueError if a span's positions are more than its pages hold, or fewer than its rows."""
    rows_of, rows_in, totals, lists = zip(*spans, strict=True) if spans else ((), (), (), ())
    row, rows, total = (np.array(column, dtype=np.int64) for column in (rows_of, rows_in, totals))
    counts = np.fromiter(map(len, lists), np.int64, len(lists))
    if (counts * page_size < total).any() or (rows > total).any():
        raise ValueError("a span has more positions than its pages hold, or fewer than rows")
    if lists and isinstance(lists[0], np.ndarray):
        pages = np.concatenate(lists).astype(np.int64)
    else:
        pages = np.fromiter(chain.from_iterable(lists), np.int64, int(counts.sum()))
    used = int(rows.sum())
    if used < num_rows:
        row, rows = np.append(row, used), np.append(rows, num_rows - used)
        total, counts = np.append(total, 0), np.append(counts, 0)
    return Step(row, rows, total, np.cumsum(counts) - counts, pages)


def without(step: Step, spans: Collection[int]) -> Step:
    """The others, at the same rows, on the same pages."""
    gone = list(spans)
    row, rows, total, first_page = (np.delete(column, gone) for column in step[:4])
    return Step(row, rows, total, first_page, step.pages)


def positions_of(step: Step, page_size: int) -> Ints:
    """(rows,) places in the cache, -1 for rows of no span."""
    rows = np.where(step.total > 0, step.rows, 0)
    span, offset = _repeated(rows)
    position = (step.total - rows)[span] + offset
    page = step.pages[step.first_page[span] + position // page_size]
    positions = np.full(int(step.rows.sum()), -1, dtype=np.int64)
    positions[step.row[span] + offset] = page * page_size + position % page_size
    return positions


def items_of(step: Step, shape: Shape) -> Items:
    """The longest first, so that programs end at nearly the same time."""
    queries = step.rows * shape.group
    tiles = -(-queries // shape.block_m)
    span, index = _repeated(tiles)
    first = index * shape.block_m
    context = (step.total - step.rows)[span]
    end = context + (np.minimum(first + shape.block_m, queries[span]) - 1) // shape.group + 1
    begin = np.zeros_like(end)
    if shape.window is not None:
        begin = np.maximum(context + first // shape.group - shape.window + 1, 0) // shape.block_n * shape.block_n
    blocks = np.maximum(-(-(end - begin) // shape.block_n), 0)
    chunk = best_chunk(blocks, shape)
    splits = np.maximum(-(-blocks // chunk), 1)
    slots = splits * (splits > 1)
    assert slots.sum() <= most_slots(shape)
    tile, split = _repeated(splits)
    of = span[tile]
    start = begin[tile] + split * (chunk * shape.block_n)
    stop = np.minimum(start + chunk * shape.block_n, end[tile])
    items = np.empty((len(tile), ITEM_FIELDS), dtype=np.int64)
    columns = (
        step.row[of],
        first[tile],
        queries[of],
        context[tile],
        step.first_page[of],
        start,
        stop,
        splits[tile],
        (np.cumsum(slots) - slots)[tile],
        split,
    )
    for field, column in enumerate(columns):
        items[:, field] = column
    return Items(items[np.argsort(start - stop, kind="stable")], int(slots.sum()))


def best_chunk(blocks: Ints, shape: Shape) -> int:
    """How many blocks of keys a unit takes at most, so that all programs end soonest. blocks: (tiles,).

    Counted in blocks that the busiest program takes: units of whole chunks go first, and the rests fill their last
    round and then rounds of their own.
    """
    most = int(blocks.max(initial=1))
    if not shape.splits or most <= 1:
        return max(most, 1)
    chunk = _chunks(most)
    at_once = shape.programs / shape.kv_heads
    full = blocks[:, None] // chunk
    units = -(-blocks[:, None] // chunk)
    num_full, num_units = full.sum(0), units.sum(0)
    full_rounds = np.ceil(num_full / at_once)
    num_rests = num_units - num_full
    rest_rounds = np.ceil(np.maximum(num_units / at_once - full_rounds, 0))
    rest = (blocks.sum() - num_full * chunk) / np.maximum(num_rests, 1)
    cost = full_rounds * (chunk + _UNIT_COST) + rest_rounds * (rest + _UNIT_COST)
    cost[:-1] += _SPLIT_COST + most / chunk[:-1] / 8
    cost[:-1][(num_units - (units == 1).sum(0))[:-1] > most_slots(shape)] = np.inf
    return int(chunk[cost.argmin()])


def most_slots(shape: Shape) -> int:
    """Of any step: where more would hold partial sums, keys are not split."""
    return _UNITS_OF_SPLITS * shape.programs // shape.kv_heads if shape.splits else 0


def most_fields(plans: Sequence[Sequence[Shape]], limits: Limits, page_size: int) -> int:
    """Of the array of any step within the limits. plans: for each, the shapes of which a step takes one."""
    pages = limits.spans * -(-limits.positions // page_size)
    items = sum(max(most_items(shape, limits) for shape in shapes) for shapes in plans)
    return len(plans) * HEADER_FIELDS + limits.rows + pages + items * ITEM_FIELDS


def most_items(shape: Shape, limits: Limits) -> int:
    """A span's last tile may hold less than others. One span more is for the rows that no sequence has."""
    tiles = limits.rows * shape.group // shape.block_m + min(limits.spans, limits.rows) + 1
    return tiles + most_slots(shape)


@lru_cache(maxsize=4096)
def _chunks(most: int) -> Ints:
    """Candidates: `most` blocks in so many parts, the smallest first."""
    return np.unique(-(-most // _PARTS))


def pack(step: Step, plans: Sequence[Items], positions: Ints) -> npt.NDArray[np.int32]:
    """The array that the kernels read."""
    pages_at = len(plans) * HEADER_FIELDS + len(positions)
    end = pages_at + len(step.pages)
    headers = list[int]()
    for items, _ in plans:
        headers += (end, len(items))
        end += items.size
        items[:, 4] += pages_at
    lists = [items.ravel() for items, _ in plans]
    return np.concatenate([np.array(headers, dtype=np.int64), positions, step.pages, *lists]).astype(np.int32)


def _repeated(sizes: Ints) -> tuple[Ints, Ints]:
    """Each index as often as its size says, and 0 to size - 1 for each."""
    if (sizes == 1).all():
        return np.arange(len(sizes)), np.zeros_like(sizes)
    index = np.repeat(np.arange(len(sizes)), sizes)
    return index, np.arange(len(index)) - (np.cumsum(sizes) - sizes)[index]
