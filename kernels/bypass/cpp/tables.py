"""The tables that the compiled loop reads: addresses, which never leave this process.

    factors   address of A, sum of ranks, and for each site: rank, where its ranks begin in h, address of B
    tile      first row, rows, first entry, end of its entries
    entry     segment (int32), bits of the fp32 weight (int32)
    plan      in_features, gather, sites, address of widths, tiles, and the addresses of these, of entries, and of where
              the addresses of each segment's factors are
    call      address and row stride of x, and of each site's output, which are 0 where one is left out

All but entries are int64. A tile is a run of rows that the same segments cover, cut to as many rows as the loop takes
at once. Groups on which the same segments work share their tiles.
"""

import ctypes
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ...integers import Ints
from ..layout import Group, Segment
from ..torch.slices import Slice
from ..worklist import cut
from .library import Loop

_PLAN_FIELDS = 8


class Tiles(NamedTuple):
    """The tiles of some segments.

    tiles: (tiles, 4) int64. entries: (entries, 2) int32. fields: of a plan. end: of the last row.
    """

    tiles: Ints
    entries: npt.NDArray[np.int32]
    fields: tuple[int, int, int]
    end: int


class GroupTables:
    """The tables of a group that stay. call: overwritten by each call."""

    def __init__(self, group: Group) -> None:
        self.widths = np.array(group.out_features, dtype=np.int64)
        self.fields = (group.in_features, int(group.gather), len(self.widths), self.widths.ctypes.data)  # of every plan
        self.call = (ctypes.c_int64 * (2 + 2 * len(self.widths)))()
        self.call_address = ctypes.addressof(self.call)


class LoopCall(NamedTuple):
    """One group's segments in the loop. plan: its address. kept: objects that must live as long as the plan."""

    loop: Loop
    group: GroupTables
    plan: int
    tiles: Tiles
    kept: object

    def add_(self, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        """Add the deltas of these segments.

        x: (rows, in_features) of the factors' type, or (rows,) int64. outputs: (rows, out_features) of each site.
        """
        assert len(x) >= self.tiles.end
        x = x if x.stride(-1) == 1 else x.contiguous()
        places: list[ctypes.c_int64 | int] = [x.data_ptr(), x.stride(0)]
        for y in outputs:
            places += (0, 0) if y is None else (y.data_ptr(), y.stride(0))
        self.group.call[:] = places
        self.loop.add(self.plan, self.group.call_address)


def plan_loops(loop: Loop, groups: Sequence[GroupTables], work: Mapping[int, Sequence[Slice]]) -> dict[int, LoopCall]:
    """Make the plan of each group that has segments in the loop. work: those segments, by group."""
    tables = np.empty(sum(_PLAN_FIELDS + len(slices) for slices in work.values()), dtype=np.int64)
    address = tables.ctypes.data
    fields: list[int] = []
    made: dict[object, Tiles] = {}
    plans = {}
    for index, slices in work.items():
        rows = tuple([s[1:4] for s in slices])
        if (tiles := made.get(rows)) is None:
            tiles = made[rows] = make_tiles(slices, loop.most_rows)
        group, place = groups[index], address + 8 * len(fields)
        fields += (*group.fields, *tiles.fields, place + 8 * _PLAN_FIELDS)
        fields += [s.factors.address for s in slices]
        plans[index] = LoopCall(loop, group, place, tiles, (tables, slices))
    tables[:] = fields
    return plans


def make_tiles(slices: Sequence[Slice], most_rows: int) -> Tiles:
    entries = cut([Segment(i, s.weight, s.start, s.end) for i, s in enumerate(slices)], most_rows)
    _, first, counts = np.unique(entries.tile, return_index=True, return_counts=True)
    tiles = np.ascontiguousarray(np.stack([entries.row[first], entries.rows[first], first, first + counts], 1))
    pairs = np.ascontiguousarray(np.stack([entries.slot, entries.weight], 1).astype(np.int32))
    return Tiles(tiles, pairs, (len(tiles), tiles.ctypes.data, pairs.ctypes.data), max(s.end for s in slices))
