"""A plan's launches as one list in device memory: which rows, and where in the arena each adapter's parameters are.

A tile is a run of rows that the same parts cover, cut to a block's length; an entry is one part on a tile. One program
owns what it writes of a tile and adds what its entries give, in their order: mixtures take no atomics and no second
pass. All are records of RECORD_FIELDS int64, addressed by their index in the list of the whole plan:

    tile    first row, rows, first entry, entries
    entry   bits of the fp32 weight, offsets of its tensors: elements of the arena as their own type reads it
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from ...bypass.layout import Segment
from ...bypass.worklist import cut
from ...device.copies import sent
from ...integers import Ints
from ..batches import Span

RECORD_FIELDS = 8


class Tiles(NamedTuple):
    """tiles, entries: (n, RECORD_FIELDS), without offsets, and counted from the first tile. parts: of each entry."""

    tiles: Ints
    entries: Ints
    parts: Ints


def cut_tiles(spans: Sequence[Span], weights: Sequence[float], block_m: int) -> Tiles:
    """Of parts on these rows. block_m: most rows of a tile."""
    segments = [Segment(part, weight, *span) for part, (weight, span) in enumerate(zip(weights, spans, strict=True))]
    cuts = cut(sorted(segments, key=lambda segment: segment.start), block_m)
    _, first, counts = np.unique(cuts.tile, return_index=True, return_counts=True)
    tiles, entries = (np.zeros((n, RECORD_FIELDS), np.int64) for n in (len(first), len(cuts.tile)))
    tiles[:, :4] = np.stack([cuts.row[first], cuts.rows[first], first + len(first), counts], axis=1)
    entries[:, 0] = cuts.weight
    return Tiles(tiles, entries, cuts.slot)


class PlanLists:
    """`add` while the plan is made, `send` when it is; launches hold this and read `there` afterwards.

    device: of the adapters.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._records: list[Ints] = []
        self._size = 0
        self._arenas: dict[torch.dtype, torch.Tensor] = {}
        self.there: torch.Tensor | None = None  # (records, RECORD_FIELDS) int64 on the device; set by `send`

    def add(self, tiles: Tiles, offsets: Ints) -> int:
        """The place of the first tile. offsets: (parts, tensors)."""
        found, entries, place = tiles.tiles.copy(), tiles.entries.copy(), self._size
        found[:, 2] += place
        entries[:, 1 : 1 + offsets.shape[1]] = offsets[tiles.parts]
        self._records += [found, entries]
        self._size += len(found) + len(entries)
        return place

    def arena(self, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """All of the memory that `part` is a view of, as such numbers: it is the same for all of a plan."""
        if dtype not in self._arenas:
            whole = torch.empty(0, dtype=dtype, device=self._device)
            self._arenas[dtype] = whole.set_(part.untyped_storage())
        return self._arenas[dtype]

    def send(self) -> None:
        """In one copy."""
        if self._records:
            self.there = sent(np.concatenate(self._records), self._device)
