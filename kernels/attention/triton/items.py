"""A step's items of paged attention: which queries over which keys a program takes, and how keys are split.

Consecutive steps are much alike: a decode adds one key to each sequence. What is kept from one to the next never
changes the result. Host only, no torch.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ...integers import Ints, cdiv, repeated
from ..plan import ITEM_FIELDS, Fields, PlanShape, SpanArrays, most_slots

_UNIT_COST = 1  # in blocks of keys: what it costs to begin and end a unit
_SPLIT_COST = 1  # in blocks of keys: what it costs to add up partial sums

_PARTS: Ints = np.array([1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 128])


class _Tiles(NamedTuple):
    """Which queries each tile holds, valid while the rows of all spans stay the same. span, first, end: (tiles,)."""

    span: Ints
    first: Ints
    end: Ints


class RunningItems:
    """The items of one shape, step after step; those fields that depend on rows and splits alone are kept with them.

    The longest items come first, by the step in which they were laid out, so that programs end at nearly the same time.
    Their order changes no bit of the result.
    """

    def __init__(self, shape: PlanShape) -> None:
        self._shape = shape
        self._rows: tuple[bytes, bytes] | None = None
        self._tiles = _Tiles(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
        self._chunk = 0
        self._blocks: Ints = np.zeros(0, dtype=np.int64)  # of keys that each tile sees
        self._splits: Ints = self._blocks  # of each tile
        self._tile: Ints = self._splits  # of each item, as are the next two
        self._split: Ints = self._splits
        self._span: Ints = self._splits
        self._items: Fields = np.zeros((0, ITEM_FIELDS), dtype=np.int32)
        self.slots = 0

    def update(self, step: SpanArrays, pages_at: int = 0) -> Fields:
        """Return the items of a step, (items, ITEM_FIELDS), valid until the next step.

        pages_at: where the step's pages begin. Sets `slots`, the number of slots that hold partial sums.
        """
        shape, fresh = self._shape, self._cut(step)
        context = step.total - step.rows
        begin, end = self._keys(context)
        blocks = np.maximum((end - begin + (shape.block_n - 1)) // shape.block_n, 0)
        if fresh or not np.array_equal(blocks, self._blocks):
            self._blocks = blocks
            chunk = best_chunk(blocks, shape)
            splits = np.maximum((blocks + (chunk - 1)) // chunk, 1)
            if fresh or chunk != self._chunk or not np.array_equal(splits, self._splits):
                self._lay_out(step, chunk, splits, begin, end)
        start, stop = self._ranges(begin, end)
        for field, column in ((3, context[self._span]), (4, step.first_page[self._span] + pages_at)):
            self._items[:, field] = column
        self._items[:, 5], self._items[:, 6] = start, stop
        return self._items

    def _cut(self, step: SpanArrays) -> bool:
        """Cut the spans into tiles. Returns whether they differ from the last step's."""
        rows = (step.row.tobytes(), step.rows.tobytes())
        if rows == self._rows:
            return False
        self._rows = rows
        queries = step.rows * self._shape.group
        span, index = repeated(cdiv(queries, self._shape.block_m))
        self._tiles = _Tiles(span, index * self._shape.block_m, queries[span])
        return True

    def _keys(self, context: Ints) -> tuple[Ints, Ints]:
        """Return each tile's first key that any query sees, rounded down to a block, and the end of its keys."""
        (span, first, queries), shape = self._tiles, self._shape
        before = context[span]
        end = before + (np.minimum(first + shape.block_m, queries) - 1) // shape.group + 1
        if shape.reach.window is None:
            return np.zeros_like(end), end
        seen = np.maximum(shape.reach.first(before + first // shape.group), 0)
        return seen // shape.block_n * shape.block_n, end

    def _lay_out(self, step: SpanArrays, chunk: int, splits: Ints, begin: Ints, end: Ints) -> None:
        slots = splits * (splits > 1)
        self.slots = int(slots.sum())
        assert self.slots <= most_slots(self._shape)
        self._chunk, self._splits = chunk, splits
        self._tile, self._split = repeated(splits)
        start, stop = self._ranges(begin, end)
        order = np.argsort(start - stop, kind="stable")
        self._tile, self._split = self._tile[order], self._split[order]
        self._span = self._tiles.span[self._tile]
        self._items = np.empty((len(order), ITEM_FIELDS), dtype=np.int32)
        kept = {
            0: step.row[self._span],
            1: self._tiles.first[self._tile],
            2: self._tiles.end[self._tile],
            7: splits[self._tile],
            8: (np.cumsum(slots) - slots)[self._tile],
            9: self._split,
        }
        for field, column in kept.items():
            self._items[:, field] = column

    def _ranges(self, begin: Ints, end: Ints) -> tuple[Ints, Ints]:
        """Return the first key of each item, and the end of its keys."""
        most = self._chunk * self._shape.block_n
        start = begin[self._tile] + self._split * most
        return start, np.minimum(start + most, end[self._tile])


def best_chunk(blocks: Ints, shape: PlanShape) -> int:
    """Return how many blocks of keys a unit takes at most, so that all programs end soonest. blocks: (tiles,).

    The cost is counted in blocks that the busiest program takes: units of whole chunks go first, and the rests fill
    their last round and then rounds of their own.
    """
    most = int(blocks.max(initial=1))
    if most <= 1:
        return max(most, 1)
    chunk = _chunks(most)
    at_once = shape.programs / shape.kv_heads
    tiles = np.bincount(blocks)  # by their blocks
    sizes = np.flatnonzero(tiles)
    tiles = tiles[sizes]
    full = sizes[:, None] // chunk
    units = cdiv(sizes[:, None], chunk)
    num_full, num_units = tiles @ full, tiles @ units
    full_rounds = np.ceil(num_full / at_once)
    num_rests = num_units - num_full
    rest_rounds = np.ceil(np.maximum(num_units / at_once - full_rounds, 0))
    rest = (tiles @ sizes - num_full * chunk) / np.maximum(num_rests, 1)
    cost = full_rounds * (chunk + _UNIT_COST) + rest_rounds * (rest + _UNIT_COST)
    # The last candidate splits nothing. All others pay for adding up, and are out if their sums find no slots.
    cost[:-1] += _SPLIT_COST + most / chunk[:-1] / 8
    cost[:-1][(num_units - tiles @ (units == 1))[:-1] > most_slots(shape)] = np.inf
    return int(chunk[cost.argmin()])


@lru_cache(maxsize=4096)
def _chunks(most: int) -> Ints:
    """Return the candidates: `most` blocks cut into so many parts, the smallest first."""
    return np.unique(cdiv(most, _PARTS))
