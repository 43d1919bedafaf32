"""Cuts a step's segments into the tiles that the Triton kernels work on. Host only, no torch.

A tile is a run of rows that the same segments cover, cut to a block's length. So one program owns a tile of y and adds
what its segments give, in their order: mixtures need no atomics and no second pass.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .layout import Segment

ENTRY_FIELDS = 8
TILE_FIELDS = 4


class Tiles(NamedTuple):
    """entries: (n, ENTRY_FIELDS) int32, one per tile and segment: slot, row, rows, first row in h, bits of the weight.
    tiles: (m, TILE_FIELDS) int32: row, rows, first entry, end of its entries.

    The unused fields keep rows of both a multiple of 16 bytes. A tile or entry of no rows is no work.
    block: most rows of a tile. num_rows: rows of h, one per row of each entry. slots: those at work, ascending.
    """

    entries: npt.NDArray[np.int32]
    tiles: npt.NDArray[np.int32]
    block: int
    num_rows: int
    slots: tuple[int, ...]


def cut(segments: Sequence[Segment]) -> Tiles:
    runs = list(_runs(segments))
    block = _block(max((end - start for start, end, _ in runs), default=0))
    entries: list[tuple[int, ...]] = []
    tiles: list[tuple[int, ...]] = []
    h_row = 0
    for run_start, run_end, covering in runs:
        for row in range(run_start, run_end, block):
            rows = min(block, run_end - row)
            tiles.append((row, rows, len(entries), len(entries) + len(covering)))
            for segment in covering:
                entries.append((segment.slot, row, rows, h_row, _bits(segment.weight), 0, 0, 0))
                h_row += rows
    slots = tuple(sorted({entry[0] for entry in entries}))
    return Tiles(_table(entries, ENTRY_FIELDS), _table(tiles, TILE_FIELDS), block, h_row, slots)


def _runs(segments: Sequence[Segment]) -> Iterator[tuple[int, int, list[Segment]]]:
    """(start, end, the segments that cover all of it, in their order), for each run of rows that has any."""
    bounds: dict[int, list[int]] = {}
    for index, segment in enumerate(segments):
        if segment.start < segment.end:
            bounds.setdefault(segment.start, []).append(index)
            bounds.setdefault(segment.end, []).append(index)
    covering: set[int] = set()
    for start, end in itertools.pairwise(sorted(bounds)):
        covering.symmetric_difference_update(bounds[start])
        if covering:
            yield start, end, [segments[index] for index in sorted(covering)]


def _block(longest: int) -> int:
    """1: sums of products, without tensor cores. 16: the least that they take. 64: prefill."""
    if longest <= 2:
        return 1
    return 16 if longest <= 16 else 64


def _bits(weight: float) -> int:
    return int(np.float32(weight).view(np.int32))


def _table(rows: list[tuple[int, ...]], fields: int) -> npt.NDArray[np.int32]:
    return np.array(rows, dtype=np.int32).reshape(-1, fields)
