"""A Bypass as one contiguous blob, in the layout that the kernels read.

Every factor starts at a multiple of `ALIGNMENT` elements. A's of sites that share an input are stacked.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from peftserve.adapters.bypass import Bypass, LowRank
from peftserve.kernels.layout import BlobLayout, Group, GroupLayout

ALIGNMENT = 32  # elements: 64 bytes in bfloat16, for vector loads


@dataclass(frozen=True)
class SiteGroups:
    """groups: as the kernels know them. places: site name to (group index, position in the group)."""

    groups: tuple[Group, ...]
    places: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Blob:
    """data: (elements,) in the arena's dtype, on the host, pinned when the device is a GPU."""

    data: torch.Tensor
    layout: BlobLayout

    @property
    def num_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()


class _Writer:
    """Collects tensors at aligned offsets."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, torch.Tensor]] = []
        self.size = 0

    def add(self, tensor: torch.Tensor) -> int:
        offset = self.size
        self.pieces.append((offset, tensor))
        self.size += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
        return offset

    def write(self, dtype: torch.dtype, pin: bool) -> torch.Tensor:
        data = torch.zeros(self.size, dtype=dtype, pin_memory=pin)
        for offset, tensor in self.pieces:
            data[offset : offset + tensor.numel()].view(tensor.shape).copy_(tensor)
        return data


def pack(bypass: Bypass, sites: SiteGroups, dtype: torch.dtype, *, pin: bool = False) -> Blob:
    """Lay the bypass out for the arena. Every site of the bypass must be in `sites`."""
    by_group: dict[int, dict[int, LowRank]] = {}
    for name, primitives in bypass.sites.items():
        group, position = sites.places[name]
        by_group.setdefault(group, {})[position] = _merge(primitives)
    writer = _Writer()
    layout = {index: _pack_group(writer, sites.groups[index], by_group[index]) for index in sorted(by_group)}
    return Blob(writer.write(dtype, pin), layout)


def _merge(primitives: tuple[LowRank, ...]) -> LowRank:
    """Several low-rank bypasses of one site as one: their ranks add up."""
    if len(primitives) == 1:
        return primitives[0]
    return LowRank(torch.cat([p.a for p in primitives]), torch.cat([p.b for p in primitives], dim=1))


def _pack_group(writer: _Writer, group: Group, parts: Mapping[int, LowRank]) -> GroupLayout:
    positions = range(len(group.out_features))
    stacked = torch.cat([parts[i].a for i in positions if i in parts])
    a = writer.add(stacked.t() if group.gather else stacked)
    ranks = tuple(parts[i].rank if i in parts else 0 for i in positions)
    b = tuple(writer.add(parts[i].b.t()) if i in parts else 0 for i in positions)
    return GroupLayout(a=a, ranks=ranks, b=b)
