"""The step's work as lists that the Triton kernels read. Host only, no torch.

A tile is a run of rows that the same segments cover, cut to a block's length. One program owns a tile's block of y and
adds the deltas of its segments, in their order: mixtures need no atomics and no second pass. An entry is one segment on
a tile, and a unit is some ranks of an entry: as many as a program of shrink takes at once.

Groups with equally many sites share a list, whatever ranks an adapter has on them: the list counts the largest rank of
each adapter, and a unit beyond those of a group does nothing there. So lists grow with the step's segments and not with
the model; where factors lie, `triton/lists.py` looks up for each group on the device. All are records of RECORD_FIELDS
int32, addressed by their index in one table, which begins with one header for each group:

    header   first unit, units, first entry, tiles, entries, ranks of a unit, input features, whether it gathers
    unit     slot, first row, rows, place of its entry in h, first rank, width of h, bits of the fp32 weight
    entry    slot, first row, rows, entries of its tile, the second of them, place in h, width of h, bits of the weight

Entries are the first ones of all tiles, in the order of their rows, and then all others by tile. They count each other
from their list's first. An entry's h is (rows, width), the width being the slot's largest rank of any group, which is
the sum over its sites.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..integers import Ints, N, cdiv, ranges, round_up
from .layout import Segment

RECORD_FIELDS = 8
_H_ALIGNMENT = 4  # elements

Records = npt.NDArray[np.int32]


class Entries(NamedTuple):
    """The entries of a step, by tile. tile, slot, row, rows: (entries,). weight: (entries,), bits of fp32."""

    tile: Ints
    slot: Ints
    row: Ints
    rows: Ints
    weight: Ints


class Lists(NamedTuple):
    """Units and entries as records. num_tiles: entries that are the first of a tile. h_size: elements of h."""

    units: Ints
    entries: Ints
    num_tiles: int
    h_size: int


class WorkList(NamedTuple):
    """All lists of a step.

    headers: (groups, RECORD_FIELDS) int32. lists: (n, RECORD_FIELDS) int32, to which headers lead.
    """

    headers: Records
    lists: Records


def cut(segments: Sequence[Segment], block_m: int) -> Entries:
    """Cut segments into tiles of at most `block_m` rows, in the order of their rows."""
    start, end, first, members = _runs(segments)
    # A run is cut into tiles, and each tile has one entry for every segment of its run: a block that owns a tile then
    # adds a whole mixture, and no other block writes to its rows.
    tiles = cdiv(end - start, block_m)
    run = np.repeat(np.arange(len(start)), tiles)
    row = start[run] + ranges(tiles) * block_m
    rows = np.minimum(end[run] - row, block_m)
    counts = np.diff(first)[run]
    tile = np.repeat(np.arange(len(run)), counts)
    member = members[first[run][tile] + ranges(counts)]
    slot = np.array([s.slot for s in segments], dtype=np.int64)[member]
    weight = np.array([s.weight for s in segments], dtype=np.float32).view(np.int32)[member]
    return Entries(tile, slot, row[tile], rows[tile], weight.astype(np.int64))


def lists_of(entries: Entries, ranks: Ints, works: npt.NDArray[np.bool_], block_r: int) -> Lists:
    """Make the lists of groups where slot s has at most ranks[s] ranks over its sites, and any work if works[s]."""
    # Entries of slots without work in these groups are left out, and tiles numbered anew without them.
    tile, slot, row, rows, weight = (column[works[entries.slot]] for column in entries)
    _, first, tile, counts = np.unique(tile, return_index=True, return_inverse=True, return_counts=True)
    rank = ranks[slot]
    sizes = h_elements(rows * rank)
    h = np.cumsum(sizes) - sizes
    blocks = cdiv(rank, block_r)
    entry, block = np.repeat(np.arange(len(slot)), blocks), ranges(blocks) * block_r
    units = (slot[entry], row[entry], rows[entry], h[entry], block, rank[entry], weight[entry])
    others = np.cumsum(counts - 1) - (counts - 1) + len(first)
    found = _records(slot, row, rows, counts[tile], others[tile], h, rank, weight)
    # The first entries go ahead, one a tile, so that a block finds its own by the number of its tile.
    order = np.concatenate([first, np.delete(np.arange(len(slot)), first)])
    return Lists(_records(*units), found[order], len(first), int(sizes.sum()))


def pack(lists: Sequence[Lists], which: Ints, about: Ints, place: int) -> WorkList:
    """Join the lists of all groups behind their headers.

    which: (groups,) the list of each, -1 where a group has no work. about: (groups, 3), the last fields of a header.
    place: the record at which the lists begin.
    """
    headers = np.zeros((len(lists) + 1, RECORD_FIELDS), dtype=np.int64)  # the last one: no work
    parts = [np.zeros((0, RECORD_FIELDS), dtype=np.int64)]
    for header, (units, entries, num_tiles, _) in zip(headers, lists, strict=False):
        header[:5] = place, len(units), place + len(units), num_tiles, len(entries)
        place += len(units) + len(entries)
        parts += [units, entries]
    table = headers[which]
    table[:, 5:] = about
    return WorkList(table.astype(np.int32), np.concatenate(parts).astype(np.int32))


def h_elements(used: N) -> N:
    """Return the elements that an entry takes, so that the next one begins aligned."""
    return round_up(used, _H_ALIGNMENT)


def _runs(segments: Sequence[Segment]) -> tuple[Ints, Ints, Ints, Ints]:
    """Return the runs of rows that the same segments cover: start, end, and in compressed rows their segments."""
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


def _records(*columns: Ints) -> Ints:
    table = np.zeros((len(columns[0]), RECORD_FIELDS), dtype=np.int64)
    table[:, : len(columns)] = np.stack(columns, axis=1)
    return table
