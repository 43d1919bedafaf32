"""The bypasses on a GPU: one shrink launch per group and one expand launch per site, whatever adapters run.

Tables on the device say where each slot's factors lie; their addresses never change, and attaching an adapter is one
small copy that no kernel waits for. The step's work list goes over in one copy, and in none while it stays the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import triton

from .layout import BlobLayout, Group, GroupLayout, Rows, Segment, Shrunk
from .tiles import Tiles, cut
from .triton_kernels import (
    BLOCK_K_BYTES,
    BLOCK_N,
    EXPAND_STAGES,
    SHRINK_STAGES,
    expand_kernel,
    gather_kernel,
    options,
    shrink_kernel,
)

_MAX_SPLIT = 8


class Work(NamedTuple):
    """One row space's work list on the device. entries, tiles: as in `Tiles`, views of one buffer."""

    cut: Tiles
    entries: torch.Tensor
    tiles: torch.Tensor


class Reach(NamedTuple):
    """The largest ranks of a group among the slots at work: summed over the group's sites, and of each site."""

    total: int
    sites: tuple[int, ...]


class TritonShrunk(NamedTuple):
    """h: (split, rows of the work list, largest sum of ranks), fp32, weighted."""

    group: int
    work: Work
    reach: Reach
    h: torch.Tensor


class TritonBypass:
    """`BypassBackend` in Triton.

        for each segment s: y[s.start:s.end] += s.weight · (x[s.start:s.end] Aᵀ) Bᵀ

    x and y have the arena's dtype and adjoining columns. h stays in fp32, sums run in fp32, and the deltas of all
    segments of a row are added to y with one rounding. No atomics: the same step gives the same bits.
    num_programs: how many programs fill the device; short work lists are split over the input's features up to there.
    """

    def __init__(
        self, arena: torch.Tensor, groups: Sequence[Group], *, max_slots: int, num_programs: int | None = None
    ) -> None:
        self._arena = arena
        self._groups = tuple(groups)
        self._block_k = BLOCK_K_BYTES // arena.element_size()
        self._num_programs = num_programs or 2 * _multiprocessors(arena.device)
        sites = max((len(g.out_features) for g in groups), default=0)
        shape = (max_slots, len(self._groups), 2 + 3 * sites)
        self._table = torch.zeros(shape, dtype=torch.int64, device=arena.device)
        self._slots: dict[int, BlobLayout] = {}
        self._align = 8  # elements; 1 from the first adapter on whose factors lie otherwise
        self._buffer = torch.empty(0, dtype=torch.int32, device=arena.device)
        self._segments: tuple[tuple[Segment, ...], tuple[Segment, ...]] | None = None
        self._work: dict[Rows, Work] = {}  # this and `_reach` are the step's, set by `begin`
        self._reach: dict[int, Reach] = {}

    def attach(self, slot: int, base: int, layout: BlobLayout) -> None:
        rows = np.zeros(self._table.shape[1:], dtype=np.int64)
        for index, entry in layout.items():
            fields = _fields(base, entry)
            rows[index, : len(fields)] = fields
            if any(offset % self._align for offset in (base, entry.a, *entry.b)):
                self._align = 1
        self._table[slot].copy_(self._pinned(rows), non_blocking=True)
        self._slots[slot] = layout
        self._segments = None

    def detach(self, slot: int) -> None:
        del self._slots[slot]
        self._table[slot].zero_()
        self._segments = None

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment]) -> None:
        segments = (tuple(tokens), tuple(logits))
        if segments == self._segments:
            return
        self._segments = segments
        cuts = {Rows.TOKENS: cut(tokens), Rows.LOGITS: cut(logits)}
        self._work = self._upload(cuts)
        self._reach = {i: _reach(i, g, cuts[g.rows].slots, self._slots) for i, g in enumerate(self._groups)}

    def shrink(self, group: int, x: torch.Tensor) -> TritonShrunk | None:
        reach = self._reach[group]
        if not reach.total:
            return None
        spec = self._groups[group]
        work = self._work[spec.rows]
        block_r = _power_of_two(reach.total, 16, 64 if work.cut.block == 64 else 32)
        grid = (len(work.cut.entries), triton.cdiv(reach.total, block_r))
        split = 1 if spec.gather else self._split(grid[0] * grid[1], spec.in_features)
        h = torch.empty(split, work.cut.num_rows, reach.total, dtype=torch.float32, device=x.device)
        shrunk = TritonShrunk(group, work, reach, h)
        blocks = {"BLOCK_M": work.cut.block, "BLOCK_R": block_r, **options(work.cut.block, SHRINK_STAGES)}
        if spec.gather:
            gather_kernel[grid](x, *self._common(shrunk), **blocks)
        else:
            blocks |= {"SPLIT": split, "BLOCK_K": self._block_k, "ALIGN": self._align}
            shrink_kernel[(*grid, split)](x, *self._common(shrunk), x.stride(0), spec.in_features, **blocks)
        return shrunk

    def expand_(self, shrunk: Shrunk, position: int, y: torch.Tensor) -> None:
        assert isinstance(shrunk, TritonShrunk)
        rank = shrunk.reach.sites[position]
        if not rank:
            return
        cut, out = shrunk.work.cut, self._groups[shrunk.group].out_features[position]
        expand_kernel[(len(cut.tiles), triton.cdiv(out, BLOCK_N))](
            y,
            *self._common(shrunk),
            shrunk.work.tiles,
            position,
            y.stride(0),
            out,
            SPLIT=shrunk.h.shape[0],
            BLOCK_M=cut.block,
            BLOCK_R=_power_of_two(rank, 16, 32),
            BLOCK_N=BLOCK_N,
            ALIGN=self._align,
            **options(cut.block, EXPAND_STAGES),
        )

    def _common(self, shrunk: TritonShrunk) -> tuple[Any, ...]:
        """The arguments that all kernels share, from `arena_ptr` to `split_stride`."""
        group, work, _, h = shrunk
        table = self._table
        return (
            *(self._arena, h, table, work.entries, group),
            *(table.stride(0), table.stride(1), h.stride(1), h.stride(0)),
        )

    def _split(self, num_programs: int, in_features: int) -> int:
        split = 1
        while (
            split < _MAX_SPLIT
            and num_programs * split < self._num_programs
            and 2 * split * self._block_k <= in_features
        ):
            split *= 2
        return split

    def _upload(self, cuts: Mapping[Rows, Tiles]) -> dict[Rows, Work]:
        """All lists in one copy. Their rows are multiples of 16 bytes, so each list is as aligned as the buffer."""
        flat = np.concatenate([part.ravel() for c in cuts.values() for part in (c.entries, c.tiles)])
        if len(flat) > len(self._buffer):
            self._buffer = self._buffer.new_empty(2 * len(flat))
        self._buffer[: len(flat)].copy_(self._pinned(flat), non_blocking=True)
        work, start = {}, 0
        for rows, c in cuts.items():
            middle, end = start + c.entries.size, start + c.entries.size + c.tiles.size
            work[rows] = Work(c, self._buffer[start:middle], self._buffer[middle:end])
            start = end
        return work

    def _pinned(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """torch's host allocator hands the memory out again only when the copy from it is done."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._arena.is_cuda else tensor


def _fields(base: int, layout: GroupLayout) -> list[int]:
    """One row of the table, as the kernels read it."""
    fields, column = [base + layout.a, layout.rank], 0
    for rank, b in zip(layout.ranks, layout.b, strict=True):
        fields += [rank, column, base + b]
        column += rank
    return fields


def _reach(group: int, spec: Group, slots: Sequence[int], layouts: Mapping[int, BlobLayout]) -> Reach:
    found = [layouts[slot][group].ranks for slot in slots if group in layouts[slot]]
    if not found:
        return Reach(0, (0,) * len(spec.out_features))
    return Reach(max(map(sum, found)), tuple(map(max, zip(*found, strict=True))))


def _power_of_two(value: int, low: int, high: int) -> int:
    return min(max(1 << (value - 1).bit_length(), low), high)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
