"""A plan's launches as one list in device memory: which rows, and where in the arena each adapter's parameters are.

A tile is a run of rows that the same segments cover, cut to a block's length; an entry is one segment on a tile. One
program owns a tile's block of y and adds the terms of its entries in their order, so mixtures need neither atomics nor
a second pass. All are records of RECORD_FIELDS int64, addressed by their index in the list of the whole plan:

    tile    first row, rows, first entry, entries
    entry   bits of the fp32 weight, offsets of its tensors: elements of the arena as their own type reads it
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ...bypass.layout import Segment
from ...bypass.worklist import cut
from ...device.copies import to_device
from ...integers import Ints
from ..batches import RowRange

RECORD_FIELDS = 8


class Tiles(NamedTuple):
    """Tiles and entries, both (n, RECORD_FIELDS), without offsets, and counted from the first tile.

    segments: of each entry.
    """

    tiles: Ints
    entries: Ints
    segments: Ints


def cut_tiles(ranges: Sequence[RowRange], weights: Sequence[float], block_m: int) -> Tiles:
    """Cut segments on these rows into tiles. block_m: most rows of a tile."""
    segments = [Segment(index, weight, *rows) for index, (weight, rows) in enumerate(zip(weights, ranges, strict=True))]
    cuts = cut(sorted(segments, key=lambda segment: segment.start), block_m)
    _, first, counts = np.unique(cuts.tile, return_index=True, return_counts=True)
    tiles, entries = (np.zeros((n, RECORD_FIELDS), np.int64) for n in (len(first), len(cuts.tile)))
    tiles[:, :4] = np.stack([cuts.row[first], cuts.rows[first], first + len(first), counts], axis=1)
    entries[:, 0] = cuts.weight
    return Tiles(tiles, entries, cuts.slot)


class PlanLists:
    """The list of a plan: `add` while it is made, then `send`.

    Launches hold it and read `on_device`. device: of the adapters.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._records: list[Ints] = []
        self._size = 0
        self._arenas: dict[torch.dtype, torch.Tensor] = {}
        self.on_device: torch.Tensor | None = None  # (records, RECORD_FIELDS) int64 on the device; set by `send`

    def add(self, tiles: Tiles, offsets: Ints) -> int:
        """Append tiles and entries, and return the place of the first tile. offsets: (segments, tensors)."""
        found, entries, place = tiles.tiles.copy(), tiles.entries.copy(), self._size
        found[:, 2] += place
        entries[:, 1 : 1 + offsets.shape[1]] = offsets[tiles.segments]
        self._records += [found, entries]
        self._size += len(found) + len(entries)
        return place

    def arena(self, view: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """View the whole memory that `view` is a view of, as numbers of a type. It is the same for all of a plan."""
        if dtype not in self._arenas:
            whole = torch.empty(0, dtype=dtype, device=self._device)
            self._arenas[dtype] = whole.set_(view.untyped_storage())
        return self._arenas[dtype]

    def send(self) -> None:
        """Send the list to the device in one copy."""
        if self._records:
            self.on_device = to_device(np.concatenate(self._records), self._device)
