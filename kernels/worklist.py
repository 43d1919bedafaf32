"""The step's work as lists that the Triton kernel reads from device memory. Host only, no torch.

A tile is a run of rows that the same segments cover, cut to a block's length. One program owns a tile's block of y and
adds what its segments give, in their order: mixtures need no atomics and no second pass. An entry is one segment's part
of a tile, and a unit is some ranks of an entry: as many as a program of shrink takes at once.

Groups on whose sites the step's adapters have the same ranks, such as those of all layers, share their lists. All are
records of RECORD_FIELDS int32, addressed by their index in one table, which begins with one header for each group:

    header   first unit, units, first tile, tiles, split, elements of h of one split
    unit     slot, first row, rows, place of its entry in h, first rank, tile, bits of the fp32 weight, entry's rank
    tile     first row, rows, first entry, entries, units
    entry    slot, place in h, rank, bits of the fp32 weight

Units count tiles from their list's first. An entry's h is (rows, rank), rank being the sum over the group's sites.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from .layout import Segment

RECORD_FIELDS = 8
_H_ALIGNMENT = 4  # elements

Ints = npt.NDArray[np.int64]


class Entries(NamedTuple):
    """The entries of a step, by tile. tile, slot, row, rows: (entries,). weight: (entries,), bits of fp32."""

    tile: Ints
    slot: Ints
    row: Ints
    rows: Ints
    weight: Ints


class Lists(NamedTuple):
    """units, tiles, entries: records whose places count from their own first. h_size: elements of h of one split."""

    units: Ints
    tiles: Ints
    entries: Ints
    h_size: int


class WorkList(NamedTuple):
    """records: (n, RECORD_FIELDS) int32. num_tiles: of the longest list. h_size: most elements of h of any group."""

    records: npt.NDArray[np.int32]
    num_tiles: int
    h_size: int


def cut(segments: Sequence[Segment], block_m: int) -> Entries:
    """Tiles of at most `block_m` rows, in the order of their rows."""
    start, end, first, members = _runs(segments)
    tiles = -(-(end - start) // block_m)
    run = np.repeat(np.arange(len(start)), tiles)
    row = start[run] + _ranges(tiles) * block_m
    rows = np.minimum(end[run] - row, block_m)
    counts = np.diff(first)[run]
    tile = np.repeat(np.arange(len(run)), counts)
    member = members[first[run][tile] + _ranges(counts)]
    slot = np.array([s.slot for s in segments], dtype=np.int64)[member]
    weight = np.array([s.weight for s in segments], dtype=np.float32).view(np.int32)[member]
    return Entries(tile, slot, row[tile], rows[tile], weight.astype(np.int64))


def lists_of(entries: Entries, ranks: Ints, works: npt.NDArray[np.bool_], block_r: int) -> Lists:
    """The lists of a group where slot s has the sum of ranks ranks[s], and anything to do if works[s]."""
    tile, slot, row, rows, weight = (column[works[entries.slot]] for column in entries)
    names, first_entry, tile, num_entries = np.unique(tile, return_index=True, return_inverse=True, return_counts=True)
    rank = ranks[slot]
    sizes = h_elements(rows * rank)
    h = np.cumsum(sizes) - sizes
    blocks = -(-rank // block_r)
    entry, block = np.repeat(np.arange(len(slot)), blocks), _ranges(blocks) * block_r
    units = (slot[entry], row[entry], rows[entry], h[entry], block, tile[entry], weight[entry], rank[entry])
    num_units = np.bincount(tile, weights=blocks, minlength=len(names)).astype(np.int64)
    tiles = (row[first_entry], rows[first_entry], first_entry, num_entries, num_units)
    return Lists(_records(*units), _records(*tiles), _records(slot, h, rank, weight), int(sizes.sum()))


def pack(groups: Sequence[Lists | None], splits: Callable[[int, Lists], int]) -> WorkList:
    """The table of all groups, None where a group has no work; lists that are the same object are there once.

    splits: how many parts of group g's input are summed apart, by g and its lists.
    """
    headers: list[tuple[int, ...]] = []
    parts, places, end = list[Ints](), dict[int, tuple[int, int]](), len(groups)
    for index, lists in enumerate(groups):
        if lists is None:
            headers.append((0, 0, 0, 0, 1, 0, 0, 0))  # the kernel divides by the split
            continue
        if id(lists) not in places:
            first_tile = end + len(lists.units)
            places[id(lists)] = (end, first_tile)
            tiles = lists.tiles.copy()
            tiles[:, 2] += first_tile + len(tiles)
            parts += [lists.units, tiles, lists.entries]
            end = first_tile + len(tiles) + len(lists.entries)
        units, tiles_at = places[id(lists)]
        split = splits(index, lists)
        headers.append((units, len(lists.units), tiles_at, len(lists.tiles), split, lists.h_size, 0, 0))
    table = np.array(headers, dtype=np.int64).reshape(-1, RECORD_FIELDS)
    h_size = int((table[:, 4] * table[:, 5]).max(initial=0))
    return WorkList(np.concatenate([table, *parts]).astype(np.int32), int(table[:, 3].max(initial=0)), h_size)


N = TypeVar("N", int, Ints)


def h_elements(used: N) -> N:
    """That an entry takes, where the next one begins aligned."""
    return -(-used // _H_ALIGNMENT) * _H_ALIGNMENT


def _runs(segments: Sequence[Segment]) -> tuple[Ints, Ints, Ints, Ints]:
    """The runs of rows that the same segments cover: start and end of each, and, in compressed rows, their segments."""
    alive = [(s.start, s.end, index) for index, s in enumerate(segments) if s.start < s.end]
    if all(one[1] <= other[0] for one, other in pairwise(alive)):  # no mixture: each segment is a run
        start, end, members = np.array(alive, dtype=np.int64).reshape(-1, 3).T
        return start, end, np.arange(len(alive) + 1), members
    bounds = sorted({bound for start, end, _ in alive for bound in (start, end)})
    runs = [(low, high, [i for start, end, i in alive if start <= low < end]) for low, high in pairwise(bounds)]
    runs = [run for run in runs if run[2]]
    first = np.cumsum([0, *(len(covering) for *_, covering in runs)])
    low, high = np.array([run[:2] for run in runs], dtype=np.int64).reshape(-1, 2).T
    return low, high, first, np.array([i for *_, covering in runs for i in covering], dtype=np.int64)


def _ranges(sizes: Ints) -> Ints:
    """0 to size - 1 for each size, one after the other."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _records(*columns: Ints) -> Ints:
    table = np.zeros((len(columns[0]), RECORD_FIELDS), dtype=np.int64)
    table[:, : len(columns)] = np.stack(columns, axis=1)
    return table
