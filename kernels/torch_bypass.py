"""The bypasses in plain torch: what a CPU runs, and a reference on any other device.

The step's plan is made once per change of the work list: decode, where the same sequences run step after step,
plans nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .factors import Factors, Slice, view_factors
from .layout import BlobLayout, Group, Rows, Segment, Shrunk


class TorchShrunk(NamedTuple):
    """`h` in the order of `slices`, each (rows, sum of ranks), in the arena's dtype."""

    slices: tuple[Slice, ...]
    h: list[torch.Tensor]


class TorchBypass:
    """`BypassBackend` in torch operators: a segment is a slice of the step, so each takes one product per site.

        for each segment s: y[s.start:s.end] += s.weight · (x[s.start:s.end] Aᵀ) Bᵀ

    x and y have the arena's dtype; every sum runs in fp32. In 16 bit, h is rounded to the arena's dtype between the
    two products: the CPU's 16-bit GEMMs take operands of one dtype, and a widened copy of the factors would double
    the bytes that bound this. A mixture rounds once per adapter.
    """

    def __init__(self, arena: torch.Tensor, groups: Sequence[Group]) -> None:
        self._arena = arena
        self._groups = tuple(groups)
        self._slots: dict[int, dict[int, Factors]] = {}
        self._work: tuple[tuple[Segment, ...], tuple[Segment, ...]] | None = None
        self._slices: dict[int, tuple[Slice, ...]] = {}

    def attach(self, slot: int, base: int, layout: BlobLayout) -> None:
        self._slots[slot] = {
            index: view_factors(self._arena, base, self._groups[index], entry)
            for index, entry in layout.items()
            if any(entry.ranks)
        }
        self._work = None

    def detach(self, slot: int) -> None:
        del self._slots[slot]
        self._work = None

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment]) -> None:
        work = (tuple(tokens), tuple(logits))
        if work == self._work:
            return
        by_rows = {Rows.TOKENS: work[0], Rows.LOGITS: work[1]}
        found = {i: self._select(i, by_rows[group.rows]) for i, group in enumerate(self._groups)}
        self._slices = {i: slices for i, slices in found.items() if slices}
        self._work = work

    def shrink(self, group: int, x: torch.Tensor) -> TorchShrunk | None:
        slices = self._slices.get(group)
        return TorchShrunk(slices, [_shrink(s, x) for s in slices]) if slices else None

    def expand_(self, shrunk: Shrunk, position: int, y: torch.Tensor) -> None:
        assert isinstance(shrunk, TorchShrunk)
        for s, h in zip(shrunk.slices, shrunk.h, strict=True):
            site = s.factors.sites[position]
            if site is not None:
                y[s.start : s.end].addmm_(h[:, site.start : site.end], site.b)

    def _select(self, group: int, segments: Sequence[Segment]) -> tuple[Slice, ...]:
        named = ((self._slots[s.slot].get(group), s) for s in segments if s.start < s.end)
        return tuple(Slice(factors, s.weight, s.start, s.end) for factors, s in named if factors is not None)


def _shrink(s: Slice, x: torch.Tensor) -> torch.Tensor:
    rows, a = x[s.start : s.end], s.factors.a
    h = a.index_select(0, rows) if s.factors.gather else torch.mm(rows, a)
    return h if s.weight == 1 else h.mul_(s.weight)
