"""How a step's bypasses are launched: designs, grids and lists, made when its segments change. Host only, no launches.

Groups of one shape are planned as one: a model has a handful of shapes, however many layers.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ...integers import Ints, cdiv, round_up
from ..layout import Capacity, Group, RowSet, Segment, StepKind
from ..worklist import Lists, WorkList, cut, lists_of, pack
from .designs import Design
from .memory import part_of_h
from .slots import SlotTable

Segments = Mapping[RowSet, Sequence[Segment]]

FEWEST_SHARING = 3  # rows of an adapter, on average, from which on tiles of several are faster
MOST_PROGRAMS = 4096  # of a captured launch, for work that few steps have; 1,000 beyond the work cost 1 us
_MOST_GRID = 65535  # CUDA's, of a grid's second dimension
_USUAL_RANK, _LARGE_RANK = 16, 64  # of a site, for which captured launches have programs, and have them if not too many


class Choice(Protocol):
    """A choice of designs."""

    def design(self, rows: int, segments: Sequence[int], rank: int, width: int) -> Design:
        """Return the design of a group's launches.

        rows: of the step. segments: rows of each. rank: the largest of a site, on average over the group's. width: its
        input features.
        """

    def all_designs(self) -> list[Design]:
        """Return all designs that it may choose."""


class Launches(NamedTuple):
    """The launches of the groups of one shape.

    part: input features that a block of shrink sums, one of `parts`; most_parts: that expand is compiled for. units,
    tiles: programs of the grids, beside those for parts and for blocks of columns.
    """

    design: Design
    part: int
    parts: int
    most_parts: int
    units: int
    tiles: int


class BypassPlan:
    """The plan of a step. launches: by shape. shape_of: of each group. busy: whether each group has work in the step.

    h_elements: elements of h, in fp32, that memory has room for. max_rank: of a site.
    """

    def __init__(
        self, groups: Sequence[Group], slots: SlotTable, choice: Choice, h_elements: int, *, max_rank: int
    ) -> None:
        self.shapes = list(dict.fromkeys(groups))
        self.shape_of = [self.shapes.index(group) for group in groups]
        self.launches: list[Launches] = []
        self.busy = [False] * len(groups)
        self._members = [np.flatnonzero(np.array(self.shape_of) == index) for index in range(len(self.shapes))]
        self._gathers = np.array([group.gather for group in groups], dtype=np.int64)
        self._widths = np.array([group.in_features for group in groups], dtype=np.int64)
        self._slots = slots
        self._choice = choice
        self._h_elements = h_elements
        self._max_rank = max_rank
        self._captured: dict[Capacity, list[Launches]] = {}
        self._lists: list[Lists] = []
        self._list_of: list[int] = []  # by shape
        self._about: Ints = np.zeros((len(groups), 3), dtype=np.int64)
        self._listed: WorkList | None = None
        self._place = len(groups)  # that it was listed for

    def update(self, segments: Segments, capacity: Capacity | None) -> None:
        """Plan a step. capacity: of the graph that it is for, if any."""
        designs = self._designs_of(segments, capacity)
        self._make_lists(segments, designs)
        ranks = np.array([design.shrink.ranks for design in designs], dtype=np.int64)[self.shape_of]
        self._about = np.stack([ranks, self._widths, self._gathers], axis=1)
        self._listed = None
        if capacity is None:
            self.launches = [self._exact(index, design) for index, design in enumerate(designs)]

    @property
    def most_units(self) -> int:
        """Return the units of the step's longest list."""
        return max((len(lists.units) for lists in self._lists), default=0)

    @property
    def most_entries(self) -> int:
        """Return the entries of the step's longest list."""
        return max((len(lists.entries) for lists in self._lists), default=0)

    @property
    def h_size(self) -> int:
        """Return the elements of h that the group with the most needs."""
        sizes = zip(self.launches, self._list_of, strict=True)
        needed = (each.parts * part_of_h(self._lists[index].h_size) for each, index in sizes if index >= 0)
        return max(needed, default=0)

    @property
    def num_fields(self) -> int:
        """Return the fields of the lists, without headers."""
        return 0 if self._listed is None else self._listed.lists.size

    def listed(self, place: int | None = None) -> WorkList:
        """Return the lists as they are read from record `place` on; by default from where they were last."""
        place = self._place if place is None else place
        if self._listed is None or place != self._place:
            self._place = place
            which = np.where(self.busy, np.array(self._list_of, dtype=np.int64)[self.shape_of], -1)
            self._listed = pack(self._lists, which, self._about, place)
        return self._listed

    def _designs_of(self, segments: Segments, capacity: Capacity | None) -> list[Design]:
        """Choose the design of each shape. Launches of a capacity are for any adapters, and made once."""
        if capacity is not None:
            if capacity not in self._captured:
                self._captured[capacity] = [self._at_most(shape, capacity) for shape in self.shapes]
            self.launches = self._captured[capacity]
            return [launches.design for launches in self.launches]
        lengths = {rows: [s.end - s.start for s in there if s.end > s.start] for rows, there in segments.items()}
        slots = {rows: sorted({s.slot for s in there if s.end > s.start}) for rows, there in segments.items()}
        tokens = {rows: max((s.end for s in there), default=0) for rows, there in segments.items()}
        return [
            self._choice.design(tokens[shape.rows], lengths[shape.rows], rank, shape.in_features)
            for shape, rank in zip(self.shapes, self._ranks(slots), strict=True)
        ]

    def _ranks(self, slots: Mapping[RowSet, Sequence[int]]) -> list[int]:
        """Return, by shape, the largest mean rank of a group's sites among these slots, rounded up."""
        return [
            int(cdiv(self._slots.ranks[there][:, slots[shape.rows]].max(initial=0), len(shape.out_features)))
            for shape, there in zip(self.shapes, self._members, strict=True)
        ]

    def _make_lists(self, segments: Segments, designs: Sequence[Design]) -> None:
        """Make the lists. Shapes share one where rows are cut alike and sites are as many."""
        shared: dict[tuple[RowSet, bool, int, int, int], list[int]] = {}
        for index, (shape, design) in enumerate(zip(self.shapes, designs, strict=True)):
            key = (shape.rows, shape.gather, len(shape.out_features), design.rows, design.shrink.ranks)
            shared.setdefault(key, []).append(index)
        busy = np.zeros(len(self.busy), dtype=np.bool_)
        self._lists, self._list_of = [], [-1] * len(self.shapes)
        for (rows, gathers, _, block_m, block_r), shapes in shared.items():
            groups = np.concatenate([self._members[index] for index in shapes])
            slots = sorted({segment.slot for segment in segments[rows] if segment.start < segment.end})
            busy[groups] = self._slots.works[groups][:, slots].any(axis=1)
            if busy[groups].any():
                ranks = self._slots.ranks[groups].max(axis=0) * (not gathers)
                works = np.asarray(self._slots.works[groups].any(axis=0))
                for index in shapes:
                    self._list_of[index] = len(self._lists)
                self._lists.append(lists_of(cut(segments[rows], block_m), ranks, works, block_r))
        self.busy = busy.tolist()

    def _exact(self, index: int, design: Design) -> Launches:
        """Return the launches for this step alone."""
        if self._list_of[index] < 0:
            return self.launches_for(self.shapes[index], design)
        lists = self._lists[self._list_of[index]]
        return self.launches_for(self.shapes[index], design, len(lists.units), lists.num_tiles, lists.h_size)

    def _at_most(self, shape: Group, capacity: Capacity) -> Launches:
        """Return launches for all steps of a kind and size.

        They have programs for the usual work of such steps, and more for larger work as far as those are not many.
        """
        rows, kind = capacity.rows, capacity.kind
        shared = {StepKind.EACH: 1, StepKind.TILES: 4, StepKind.FEW: max(cdiv(rows, 4), FEWEST_SHARING)}[kind]
        design = self._choice.design(rows, [shared] * cdiv(rows, shared), _USUAL_RANK, shape.in_features)
        usual = {StepKind.EACH: rows, StepKind.TILES: cdiv(rows, 4), StepKind.FEW: most_tiles_of_few(rows)}[kind]
        large = {StepKind.TILES: cdiv(rows, 2)}.get(kind, usual)
        plain = self.launches_for(shape, design)
        each, most = (
            cdiv(len(shape.out_features) * min(rank, self._max_rank), design.shrink.ranks)
            for rank in (_USUAL_RANK, _LARGE_RANK)
        )
        blocks = sum(cdiv(width, design.expand.columns * design.expand.walked) for width in shape.out_features)
        units = max(usual * each, min(large * most, MOST_PROGRAMS // plain.parts))
        return plain._replace(units=units, tiles=max(usual, min(large, MOST_PROGRAMS // max(blocks, 1))))

    def launches_for(self, shape: Group, design: Design, units: int = 0, tiles: int = 0, h_size: int = 0) -> Launches:
        """Return launches of a design.

        h_size: of one part; where there is little room for so much, there are fewer parts.
        """
        shrink, most = design.shrink, design.most_parts
        room = max(1, min(most, self._h_elements // max(part_of_h(h_size), 1)))
        usual = max(shrink.part, round_up(cdiv(shape.in_features, most), shrink.step))
        part = max(usual, round_up(cdiv(shape.in_features, room), shrink.step))
        most_parts = 1 << (cdiv(shape.in_features, usual) - 1).bit_length()
        programs = (min(units, _MOST_GRID), min(tiles, _MOST_GRID))
        return Launches(design, part, cdiv(shape.in_features, part), most_parts, *programs)


def most_tiles_of_few(rows: int) -> int:
    """Return the most tiles of a step of so many rows where few adapters have many rows each."""
    return rows // 16 + 4
