"""The device memory that launches of the bypasses read and write, and how much of it is allocated at the start."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...device.step_memory import StepMemory
from ...integers import cdiv, round_up
from ..layout import Group
from ..worklist import RECORD_FIELDS, h_elements

MIXED_RANK = 64  # of a site: up to which there is memory for adapters in mixtures of many
MOST_LISTED_ROWS = 512
"""Steps of more rows, each of another adapter, take so long that memory for their lists may be allocated each time."""
_LEAST_RANKS = 16  # of a unit
_MIXED = 4  # adapters that work on each of the listed rows
_ALIGNMENT = 16  # elements, of what triton compiles for


class Memory(NamedTuple):
    """The memory of a step. lists: (n,) int32, headers first. h: fp32.

    records: (groups, fields) int32; the units of a group, and from `first_entry` on its entries.
    """

    lists: torch.Tensor
    records: torch.Tensor
    first_entry: int
    h: torch.Tensor

    def part_stride(self, parts: int) -> int:
        """Return the elements of h from one part to the next, the same in all steps, as captured launches know it."""
        return len(self.h) // parts // _ALIGNMENT * _ALIGNMENT


def part_of_h(elements: int) -> int:
    """Return the elements that a part of so many takes, so that the next one begins aligned."""
    return round_up(elements, _ALIGNMENT)


class Room(NamedTuple):
    """Most units and entries of a group, and elements of h."""

    units: int
    entries: int
    h_elements: int


def room_for(groups: Sequence[Group], max_rows: int, max_entries: int, max_rank: int) -> Room:
    """Return how much memory to allocate.

    h has room for an adapter of `max_rank` on all sites of each of `max_rows` rows, and for those of up to MIXED_RANK
    on `max_entries`. Lists have room for as many of the latter as MOST_LISTED_ROWS, each mixed of a few, and an eighth
    as many of the former.
    """
    widest = max((len(group.out_features) for group in groups), default=0)
    rank, mixed = max_rank * widest, min(max_rank, MIXED_RANK) * widest
    listed = min(max_rows, MOST_LISTED_ROWS)
    units = max(listed * cdiv(mixed, _LEAST_RANKS), cdiv(listed, 8) * cdiv(rank, _LEAST_RANKS))
    elements = max(max_rows * h_elements(rank), max_entries * h_elements(mixed))
    return Room(units, min(max(max_entries, 1), _MIXED * listed), round_up(elements, _ALIGNMENT))


def records_for(groups: int, units: int, entries: int, sites: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """Allocate the records of so many groups, and return them and where entries begin.

    sites: of the group with the most.
    """
    first_entry = round_up(units * RECORD_FIELDS, _ALIGNMENT)
    fields = first_entry + round_up(entries * (1 + sites) * RECORD_FIELDS, _ALIGNMENT)
    return torch.zeros(groups, fields, dtype=torch.int32, device=device), first_entry


class FixedMemory:
    """The memory that all steps share that fit into it. Its addresses never change.

    step_memory: in which lists are sent, with a place for the groups' headers at its front; `front` is that place.
    lists: of a step, at most.
    """

    def __init__(
        self, groups: Sequence[Group], room: Room, lists: int, step_memory: StepMemory, device: torch.device
    ) -> None:
        self.room = room
        self.step_memory = step_memory
        fields = lists * (room.units + room.entries) * RECORD_FIELDS
        self.front = step_memory.reserve(len(groups) * RECORD_FIELDS, fields)
        sites = max((len(group.out_features) for group in groups), default=0)
        self.records, self._first_entry = records_for(len(groups), room.units, room.entries, sites, device)
        self.h = torch.zeros(room.h_elements, dtype=torch.float32, device=device)
        self._memory: Memory | None = None

    @property
    def memory(self) -> Memory:
        """Return the memory of a step, from the first step on."""
        if self._memory is None:
            self._memory = self.memory_with(self.step_memory.on_device[self.front :])
        return self._memory

    def memory_with(self, lists: torch.Tensor) -> Memory:
        return Memory(lists, self.records, self._first_entry, self.h)
