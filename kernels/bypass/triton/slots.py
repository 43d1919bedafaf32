"""Where each slot's factors lie, as the Triton kernels read it: a table on the device, and its ranks on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ...device.copies import pinned
from ...integers import round_up
from ..layout import BlobLayout, Group, GroupLayout

TABLE_FIELDS, SITE_FIELDS = 2, 5
ALIGNMENT = 8  # elements, of factors that kernels read in wide loads
_STRIDE = 16  # divides the table's strides: what triton compiles for


class SlotRow(NamedTuple):
    """The row of one adapter in the table. fields: (groups, fields) int64 on the host, pinned for a table on a GPU.

    ranks, works: (groups,), as in the table. alignment: divides all of its offsets.
    """

    fields: torch.Tensor
    ranks: npt.NDArray[np.int64]
    works: npt.NDArray[np.bool_]
    alignment: int


class SlotTable:
    """The table of all slots: (slots, groups, fields) int64 on the device; see `lists.py`. Its address never changes.

    ranks: (groups, slots) sums over a group's sites. works: (groups, slots), whether there is anything to do.
    alignment: divides all offsets; 1 from the first unaligned adapter on.
    """

    def __init__(self, device: torch.device, groups: Sequence[Group], max_slots: int) -> None:
        fields = TABLE_FIELDS + SITE_FIELDS * max((len(group.out_features) for group in groups), default=0)
        shape = (max_slots, len(groups), round_up(fields, _STRIDE))
        self.table = torch.zeros(shape, dtype=torch.int64, device=device)
        self.ranks = np.zeros((len(groups), max_slots), dtype=np.int64)
        self.works = np.zeros((len(groups), max_slots), dtype=np.bool_)
        self.alignment = ALIGNMENT

    def prepare(self, base: int, layout: BlobLayout) -> SlotRow:
        """Make the row of the blob at element `base`. Reads nothing that steps change."""
        fields = np.zeros(self.table.shape[1:], dtype=np.int64)
        ranks, works = np.zeros(len(fields), dtype=np.int64), np.zeros(len(fields), dtype=np.bool_)
        for index, entry in layout.items():
            own = _fields(base, entry)
            fields[index, : len(own)] = own
            ranks[index] = entry.rank
            works[index] = entry.rank > 0 or {*entry.scales, *entry.biases} - {None} != set()
        offsets = {base, *(offset for entry in layout.values() for offset in (entry.a, *entry.b))}
        aligned = not any(offset % ALIGNMENT for offset in offsets)
        return SlotRow(pinned(fields, self.table.device), ranks, works, ALIGNMENT if aligned else 1)

    def attach(self, slot: int, row: SlotRow) -> None:
        """Copy a row to the device, behind the work that the current stream has."""
        self.ranks[:, slot], self.works[:, slot] = row.ranks, row.works
        self.alignment = min(self.alignment, row.alignment)
        self.table[slot].copy_(row.fields, non_blocking=True)

    def detach(self, slot: int) -> None:
        """Clear a slot's row."""
        self.table[slot].zero_()
        self.ranks[:, slot], self.works[:, slot] = 0, False


def _fields(base: int, layout: GroupLayout) -> list[int]:
    fields, column = [base + layout.a, layout.rank], 0
    nowhere = (None,) * len(layout.ranks)
    sites = zip(layout.ranks, layout.b, layout.scales or nowhere, layout.biases or nowhere, strict=True)
    for rank, b, scale, bias in sites:
        fields += [rank, column, base + b, *(0 if place is None else base + place + 1 for place in (scale, bias))]
        column += rank
    return fields
