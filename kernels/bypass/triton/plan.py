"""Which blocks and lists a step's bypasses run with, made when its segments change. Host only, no launches."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...integers import Ints
from ..layout import Group, Rows, Segment
from ..worklist import Lists, WorkList, cut, lists_of, pack
from . import tuning
from .slots import SlotTable
from .tuning import Blocks

Segments = Mapping[Rows, Sequence[Segment]]


class BypassPlan:
    """programs: that run at once. h_elements: for which there is memory. blocks, busy: of each group, in the step."""

    def __init__(
        self,
        groups: Sequence[Group],
        slots: SlotTable,
        table: tuning.Tuning,
        programs: Callable[[Blocks], int],
        h_elements: int,
        *,
        batch_invariant: bool,
    ) -> None:
        self._groups = tuple(groups)
        self._slots = slots
        self._tuning = table
        self._programs = programs
        self._h_elements = h_elements
        self._batch_invariant = batch_invariant
        self.blocks: list[Blocks] = []
        self.busy = [False] * len(self._groups)
        self._lists: list[Lists] = []
        self._which: Ints = np.full(len(self._groups), -1, dtype=np.int64)
        self._splits: Ints = np.ones(len(self._groups), dtype=np.int64)
        self._listed: WorkList | None = None
        self._place = len(self._groups)  # that it was listed for

    def update(self, segments: Segments, capacity: int | None) -> None:
        self.blocks = self._choose(segments, capacity)
        self._lists, self._which = self._make_lists(segments)
        self.busy = (self._which >= 0).tolist()
        self._splits = np.array([self._split(index) for index in range(len(self._groups))], dtype=np.int64)
        self._listed = None

    @property
    def num_fields(self) -> int:
        """Of the lists, without headers."""
        return 0 if self._listed is None else self._listed.lists.size

    def listed(self, place: int | None = None) -> WorkList:
        """The lists as they are read from record `place` on; where they were last, if it does not matter."""
        place = self._place if place is None else place
        if self._listed is None or place != self._place:
            self._place = place
            self._listed = pack(self._lists, self._which, self._splits, place)
        return self._listed

    def _choose(self, segments: Segments, capacity: int | None) -> list[Blocks]:
        """For each group, by the largest mean rank of its sites in the step; by 0 where there is a capacity."""
        if self._batch_invariant:
            return [self._tuning.invariant] * len(self._groups)
        tokens, ranks = {}, {}
        for rows, there in segments.items():
            tokens[rows] = capacity or max((segment.end for segment in there), default=0)
            ranks[rows] = self._slots.most_ranks([] if capacity else [segment.slot for segment in there])
        known = dict[tuple[Rows, int, int], Blocks]()
        chosen = []
        for index, group in enumerate(self._groups):
            key = (group.rows, ranks[group.rows][index], group.in_features)
            if key not in known:
                known[key] = self._tuning.blocks(tokens[group.rows], *key[1:])
            chosen.append(known[key])
        return chosen

    def _make_lists(self, segments: Segments) -> tuple[list[Lists], Ints]:
        """The lists, and which is each group's; -1 for groups without work."""
        members: dict[tuple[Rows, int, int], list[int]] = {}
        for index, (group, blocks) in enumerate(zip(self._groups, self.blocks, strict=True)):
            members.setdefault((group.rows, blocks.block_m, blocks.block_r), []).append(index)
        lists, which = list[Lists](), np.full(len(self._groups), -1, dtype=np.int64)
        for (rows, block_m, block_r), there in members.items():
            slots = sorted({segment.slot for segment in segments[rows] if segment.start < segment.end})
            works = self._slots.works[there]
            if (busy := works[:, slots].any(axis=1)).any():
                entries = cut(segments[rows], block_m)
                which[np.array(there)[busy]] = len(lists)
                lists.append(
                    lists_of(entries, self._slots.ranks[there].max(axis=0), np.asarray(works.any(axis=0)), block_r)
                )
        return lists, which

    def _split(self, group: int) -> int:
        blocks, spec = self.blocks[group], self._groups[group]
        if spec.gather or self._which[group] < 0:
            return 1
        if self._batch_invariant:  # were it by the lists, a row's sums would depend on the step
            return tuning.best_split(blocks, 1, self._programs(blocks), spec.in_features)
        there = self._lists[int(self._which[group])]
        best = tuning.best_split(blocks, len(there.units), self._programs(blocks), spec.in_features)
        return max(1, min(best, self._h_elements // max(there.h_size, 1)))
