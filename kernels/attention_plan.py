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

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .attention import Span

HEADER_FIELDS, ITEM_FIELDS = 2, 10
_UNIT_COST = 1  # in blocks of keys: what it costs to begin and end a unit
_SPLIT_COST = 1  # in blocks of keys: what it costs to add up partial sums
_UNITS_OF_SPLITS = 4  # most units that have partial sums, for each program

Ints = npt.NDArray[np.int64]


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


class Items(NamedTuple):
    """items: (n, ITEM_FIELDS), pages counting from the first span's first. slots: how many hold partial sums."""

    items: Ints
    slots: int


def step_of(spans: Sequence[Span], num_rows: int, page_size: int) -> Step:
    """Raises ValueError if a span's positions are more than its pages hold, or fewer than its rows."""
    row, rows, total = np.array([span[:3] for span in spans], dtype=np.int64).reshape(-1, 3).T
    counts = np.array([len(span.pages) for span in spans], dtype=np.int64)
    if (counts * page_size < total).any() or (rows > total).any():
        raise ValueError("a span has more positions than its pages hold, or fewer than rows")
    if spans and isinstance(spans[0].pages, np.ndarray):
        pages = np.concatenate([span.pages for span in spans]).astype(np.int64)
    else:
        pages = np.fromiter(chain.from_iterable(span.pages for span in spans), np.int64, int(counts.sum()))
    used = int(rows.sum())
    if used < num_rows:
        row, rows = np.append(row, used), np.append(rows, num_rows - used)
        total, counts = np.append(total, 0), np.append(counts, 0)
    return Step(row, rows, total, np.cumsum(counts) - counts, pages)


def positions_of(step: Step, page_size: int) -> Ints:
    """(rows,) places in the cache, -1 for rows of no span."""
    rows = np.where(step.total > 0, step.rows, 0)
    span, offset = np.repeat(np.arange(len(rows)), rows), _ranges(rows)
    position = (step.total - rows)[span] + offset
    page = step.pages[step.first_page[span] + position // page_size]
    positions = np.full(int(step.rows.sum()), -1, dtype=np.int64)
    positions[step.row[span] + offset] = page * page_size + position % page_size
    return positions


def items_of(step: Step, shape: Shape) -> Items:
    """The longest first, so that programs end at nearly the same time."""
    queries = step.rows * shape.group
    tiles = -(-queries // shape.block_m)
    span = np.repeat(np.arange(len(tiles)), tiles)
    first = _ranges(tiles) * shape.block_m
    context = (step.total - step.rows)[span]
    end = context + (np.minimum(first + shape.block_m, queries[span]) - 1) // shape.group + 1
    begin = np.zeros_like(end)
    if shape.window is not None:
        begin = np.maximum(context + first // shape.group - shape.window + 1, 0) // shape.block_n * shape.block_n
    blocks = np.maximum(-(-(end - begin) // shape.block_n), 0)
    chunk = best_chunk(blocks, shape)
    splits = np.maximum(-(-blocks // chunk), 1)
    slots = np.where(splits > 1, splits, 0)
    first_slot = np.cumsum(slots) - slots
    tile, split = np.repeat(np.arange(len(span)), splits), _ranges(splits)
    start = begin[tile] + split * chunk * shape.block_n
    stop = np.minimum(start + chunk * shape.block_n, end[tile])
    of = span[tile]
    items = np.stack(
        [
            step.row[of],
            first[tile],
            queries[of],
            context[tile],
            step.first_page[of],
            start,
            stop,
            splits[tile],
            first_slot[tile],
            split,
        ],
        axis=1,
    )
    return Items(items[np.argsort(start - stop, kind="stable")], int(slots.sum()))


def best_chunk(blocks: Ints, shape: Shape) -> int:
    """How many blocks of keys a unit takes at most, so that all programs end soonest. blocks: (tiles,)."""
    most = int(blocks.max(initial=1))
    if not shape.splits or most == 1:
        return max(most, 1)
    chunk = np.unique(np.geomspace(1, most, num=min(most, 16)).round().astype(np.int64))
    full, rest = np.divmod(blocks[:, None], chunk)
    left = rest > 0
    split = np.where(full + left > 1, full + left, 0)
    waves = shape.programs / shape.kv_heads  # items at once
    num_full, num_left = full.sum(0), left.sum(0)
    full_waves = np.ceil(num_full / waves)
    left_waves = np.ceil(np.maximum(num_left - (full_waves * waves - num_full), 0) / waves)
    mean_left = rest.sum(0) / np.maximum(num_left, 1)
    combining = np.where(split.any(0), _SPLIT_COST + split.max(0) / 8, 0)
    cost = full_waves * (chunk + _UNIT_COST) + left_waves * (mean_left + _UNIT_COST) + combining
    cost[(split.sum(0) > _UNITS_OF_SPLITS * waves) & (chunk < most)] = np.inf
    return int(chunk[cost.argmin()])


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


def _ranges(sizes: Ints) -> Ints:
    """0 to size - 1 for each size, one after the other."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
