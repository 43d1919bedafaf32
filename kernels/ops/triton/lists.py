"""A plan's launches as one list in device memory: which rows, and where in the arena each adapter's parameters are.

A tile is a run of rows that the same parts cover, cut to a block's length; an entry is one part on a tile. One program
owns what it writes of a tile and adds what its entries give, in their order: mixtures take no atomics and no second
pass. All are records of RECORD_FIELDS int64, addressed by their index in the list of the whole plan:

    tile    first row, rows, first entry, entries
    entry   bits of the fp32 weight, offsets of its tensors: elements of the arena as their own type reads it
"""

from collections.abc import Sequence

import numpy as np
import torch

from ...bypass.layout import Segment
from ...bypass.worklist import cut
from ...integers import Ints

RECORD_FIELDS = 8


class PlanLists:
    """`add` while the plan is made, `send` when it is; launches hold this and read `there` afterwards."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._records: list[Ints] = []
        self._size = 0
        self.there: torch.Tensor | None = None  # (records, RECORD_FIELDS) int64 on the device; set by `send`

    def add(self, spans: Sequence[tuple[float, int, int]], offsets: Ints, block_m: int) -> tuple[int, int]:
        """The place of the first tile, and how many there are.

        spans: weight, start and end of each part. offsets: (parts, tensors). block_m: most rows of a tile.
        """
        segments = [Segment(part, *span) for part, span in enumerate(spans)]
        entries = cut(sorted(segments, key=lambda segment: segment.start), block_m)
        _, first, counts = np.unique(entries.tile, return_index=True, return_counts=True)
        tiles, found = (
            np.zeros((len(first), RECORD_FIELDS), np.int64),
            np.zeros((len(entries.tile), RECORD_FIELDS), np.int64),
        )
        place = self._size
        tiles[:, :4] = np.stack([entries.row[first], entries.rows[first], first + place + len(tiles), counts], axis=1)
        found[:, 0] = entries.weight
        found[:, 1 : 1 + offsets.shape[1]] = offsets[entries.slot]
        self._records += [tiles, found]
        self._size += len(tiles) + len(found)
        return place, len(tiles)

    def send(self) -> None:
        """In one copy, which torch's host allocator keeps what it reads for."""
        if self._records:
            flat = torch.from_numpy(np.concatenate(self._records))
            pinned = flat.pin_memory() if self._device.type == "cuda" else flat
            self.there = pinned.to(self._device, non_blocking=True)
