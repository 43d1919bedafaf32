"""The bypasses on a GPU: two launches for each group, whatever adapters run, and one that leads in a step.

Tables on the device say where each slot's factors lie. Their addresses never change, and attaching an adapter is one
small copy that no kernel waits for. The work list is made when the step's segments differ from the last one's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...device.copies import to_device
from ...device.side_stream import SideStream
from ...device.step_memory import StepMemory
from ...integers import cdiv
from ..layout import BlobLayout, Capacity, Group, RowSet, Segment, StepKind
from ..worklist import RECORD_FIELDS
from .choice import choice_for
from .designs import Design
from .expand import MAX_SITES, expand_kernel
from .lists import BLOCK, WARPS, lists_kernel
from .memory import FixedMemory, Memory, records_for, room_for
from .options import capability_of, expand_options, shrink_options, starts_early
from .plan import FEWEST_SHARING, BypassPlan, Choice, Launches, most_tiles_of_few
from .shrink import shrink_kernel
from .slots import ALIGNMENT, SlotRow, SlotTable

_MOST_LIST_BLOCKS = 16  # of a group, of programs that write its records


class TritonBypass:
    """`BypassBackend` in Triton.

        for each segment s: y[s.start:s.end] += s.weight · (x[s.start:s.end] Aᵀ) Bᵀ

    x and y have the arena's dtype and adjoining columns. h stays in fp32, sums run in fp32, and the deltas of all
    segments of a row are added to y with one rounding. No floating-point atomics: the same step gives the same bits.

    A launch depends on the step only through device memory whose addresses stay. So a CUDA graph that was captured
    after `begin(..., capacity=c)` may be replayed after any other `begin` of that capacity that returned True. With a
    capacity every group is launched, whatever the step has for it.

    That memory has a fixed size (`memory.py`). A row counts once for each adapter that works on it. Steps that need
    more, such as mixtures of several large adapters on most rows, run in memory of their own, and in no graph.

    max_rows: of any step. max_entries: rows of all segments of any step together; `max_rows` if not given. memory: for
    the lists, which the caller sends; without one `begin` does. choice: of designs; the device's own without one.
    """

    fuses_scale_and_bias = True

    def __init__(
        self,
        arena: torch.Tensor,
        groups: Sequence[Group],
        *,
        max_slots: int,
        max_rows: int,
        max_entries: int | None = None,
        max_rank: int = 512,
        memory: StepMemory | None = None,
        choice: Choice | None = None,
    ) -> None:
        self._arena = arena
        self._groups = tuple(groups)
        self._slots = SlotTable(arena.device, self._groups, max_slots)
        self._choice = choice or choice_for(arena, self._groups)
        room = room_for(groups, max_rows, max(max_entries or 0, max_rows), max_rank)
        self._plan = BypassPlan(self._groups, self._slots, self._choice, room.h_elements, max_rank=max_rank)
        self._shared = memory is not None
        step_memory = memory or StepMemory(arena.device)
        self._fixed = FixedMemory(self._groups, room, len(self._plan.shapes), step_memory, arena.device)
        if not self._shared:
            step_memory.begin()
        self._sites = max((len(group.out_features) for group in self._groups), default=0)
        self._capability = capability_of(arena.device)
        self._early = starts_early(self._capability)
        self._side = SideStream()
        self._own: Memory | None = None  # of a step that has its own; this and those below are set by `begin`
        self._work: object = None
        self._fits = True
        self._capacity: Capacity | None = None
        self._started: set[int] = set()  # groups, by `start`
        self._led_in = False  # and nothing launched behind it yet

    def prepare(self, base: int, layout: BlobLayout) -> SlotRow:
        return self._slots.prepare(base, layout)

    def attach(self, slot: int, prepared: SlotRow) -> None:
        self._slots.attach(slot, prepared)
        self._work = None

    def detach(self, slot: int) -> None:
        self._slots.detach(slot)
        self._work = None

    def kind_of(self, tokens: Sequence[Segment]) -> StepKind:
        """Return FEW if the step has few tiles; else the kind by how many rows share an adapter."""
        lengths = [s.end - s.start for s in tokens if s.end > s.start]
        if not lengths or sum(lengths) < FEWEST_SHARING * len(lengths):
            return StepKind.EACH
        rows = max((s.end for s in tokens), default=0)
        tiles = sum(cdiv(length, 16) for length in lengths)
        return StepKind.FEW if tiles <= most_tiles_of_few(rows) else StepKind.TILES

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment], *, capacity: Capacity | None = None) -> bool:
        work = (tuple(tokens), tuple(logits), capacity)
        changed = work != self._work
        if changed:
            self._work = work
            self._capacity = capacity
            self._plan.update({RowSet.TOKENS: tokens, RowSet.LOGITS: logits}, capacity)
            self._fits = self._settle(captured=capacity is not None)
        if self._shared:
            return self._fits and self._write()
        if changed and self._fits:
            self._fixed.step_memory.begin()
            self._write()
            self._fixed.step_memory.send()
        return self._fits

    def _settle(self, captured: bool) -> bool:
        """Choose where the step's lists and h lie. Returns False if captured launches do not serve the step."""
        plan, room = self._plan, self._fixed.room
        plan.listed()
        enough = plan.most_units <= room.units and plan.most_entries <= room.entries
        enough = enough and plan.h_size <= room.h_elements
        fits = not captured or (enough and self._slots.alignment == ALIGNMENT)
        self._own = self._own_memory() if fits and not enough else None
        return fits

    def _write(self) -> bool:
        """Write the lists to the buffer that is sent, unless the step has memory of its own."""
        if self._own is None:
            memory, front = self._fixed.step_memory, self._fixed.front
            place = memory.take(self._plan.num_fields)
            headers, lists = self._plan.listed((place - front) // RECORD_FIELDS)
            memory.at(front, headers.size)[:] = headers.reshape(-1)
            memory.at(place, lists.size)[:] = lists.reshape(-1)
        return True

    def _own_memory(self) -> Memory:
        plan, device = self._plan, self._arena.device
        listed = plan.listed(len(self._groups))
        flat = to_device(np.concatenate([listed.headers, listed.lists]).ravel(), device)
        records = records_for(len(self._groups), plan.most_units, plan.most_entries, self._sites, device)
        return Memory(flat, *records, self._fixed.h.new_empty(max(plan.h_size, 1)))

    def lead_in(self) -> None:
        """Launch the kernel that looks up where the factors of the step's work lie.

        The launch behind it may not begin early: it begins when the records are written, and all that follow rely on
        that.
        """
        self._side.join()
        self._started.clear()
        if self._capacity is None and not any(self._plan.busy):
            return
        self._led_in = True
        lists, records, first_entry, _ = self._memory
        lists_kernel[(self._list_blocks(), len(self._groups))](
            lists,
            self._slots.table,
            records,
            *self._slots.table.stride()[:2],
            records.stride(0),
            first_entry,
            SITES=self._sites,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )

    def _list_blocks(self) -> int:
        plan = self._plan
        units = max((each.units for each in plan.launches), default=1)
        most = max(plan.most_units, plan.most_entries) if self._capacity is None else units
        return min(max(cdiv(most, BLOCK), 1), _MOST_LIST_BLOCKS)

    def start(self, group: int, x: torch.Tensor) -> None:
        """Launch shrink on a second stream, if the step's design says so: the group's next `add_` then only expands.

        All deltas of groups before must have been added when this runs: all groups share one h.
        """
        launches = self._launches(group)
        if launches is not None and launches.design.beside and launches.units and not self._groups[group].gather:
            self._side.join()
            with self._side.forked():
                self._shrink(group, x, launches, early=False)
            self._started.add(group)

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        launches = self._launches(group)
        if launches is not None:
            self._add(group, x, outputs, launches)

    def _launches(self, group: int) -> Launches | None:
        """Return the launches of a group, or None where it has nothing to do."""
        if self._capacity is None and not self._plan.busy[group]:
            return None
        return self._plan.launches[self._plan.shape_of[group]]

    def _add(
        self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None], launches: Launches
    ) -> list[Any]:
        """Launch shrink and expand. Returns the compiled kernels; none in the interpreter."""
        self._side.join()
        early, kernels = self._early and launches.design.early, []
        started = group in self._started
        self._started.discard(group)
        if shrinks := bool(launches.units) and not started and not self._groups[group].gather:
            kernels.append(self._shrink(group, x, launches, early=early and not self._led_in))
            self._led_in = False
        # Expand reads y before it waits, which is right only behind a shrink that waited for the base's product.
        for first in range(0, len(outputs), MAX_SITES):
            kernels.append(self._expand(group, x, outputs[first:], first, launches, early=early and shrinks))
            self._led_in = False
        return kernels

    def warm_up(self) -> None:
        """Compile the kernels that steps may launch, a second for each that triton has not kept on disk."""
        for design in self._choice.all_designs():
            self.compile(design)

    def compile(self, design: Design) -> list[Any]:
        """Compile the kernels of a design, and return them; none in the interpreter."""
        return [kernel for shape in self._plan.shapes for kernel in self._compile(shape, design)]

    def _compile(self, shape: Group, design: Design) -> list[Any]:
        """Launch a group of that shape without work: as the first of a step, as a later one, and behind `start`."""
        zeros, kernels = self._arena.new_zeros, list[Any]()
        headers = zeros(len(self._groups) * RECORD_FIELDS, dtype=torch.int32)
        self._own = self._fixed.memory_with(headers)
        launches = self._plan.launches_for(shape, design, units=1, tiles=1)
        x = zeros(1, dtype=torch.int64) if shape.gather else zeros(1, shape.in_features)
        outputs = [zeros(1, out) for out in shape.out_features]
        group = self._groups.index(shape)
        for self._led_in, started in ((True, set()), (False, set()), (False, {group})):
            self._started |= started
            kernels += self._add(group, x, outputs, launches)
        self._work = self._own = None
        return [kernel for kernel in kernels if kernel is not None]

    def _shrink(self, group: int, x: torch.Tensor, launches: Launches, *, early: bool) -> Any:
        lists, records, _, h = self._memory
        return shrink_kernel[(launches.parts, launches.units)](
            x,
            self._arena,
            records,
            lists,
            h,
            x.stride(0),
            self._groups[group].in_features,
            launches.part,
            self._memory.part_stride(launches.parts),
            records.stride(0),
            group,
            **shrink_options(launches.design, self._slots.alignment, part=launches.part, early=early),
        )

    def _expand(
        self,
        group: int,
        x: torch.Tensor,
        outputs: Sequence[torch.Tensor | None],
        first_site: int,
        launches: Launches,
        *,
        early: bool,
    ) -> Any:
        """Launch expand for at most MAX_SITES sites. outputs: of the sites from the first one on."""
        lists, records, first_entry, h = self._memory
        there = [*outputs[:MAX_SITES], *[None] * (MAX_SITES - len(outputs))]
        design, gathers = launches.design, self._groups[group].gather
        plain = not gathers and self._arena.element_size() == 2
        widths = [0 if output is None else output.shape[1] for output in there]
        blocks = sum(cdiv(width, design.expand.columns * design.expand.walked) for width in widths)
        if not blocks or not launches.tiles:
            return None
        return expand_kernel[(blocks, launches.tiles)](
            x if gathers else self._slots.table,
            *[self._arena if output is None else output for output in there],
            self._arena,
            records,
            lists,
            h,
            *[0 if output is None else output.stride(0) for output in there],
            *widths,
            launches.parts,
            self._memory.part_stride(launches.parts),
            records.stride(0),
            first_entry,
            group,
            first_site,
            SITES=self._sites,
            GATHER=gathers,
            MOST_PARTS=1 if gathers else launches.most_parts,
            **expand_options(design, self._slots.alignment, early=early, capability=self._capability, plain=plain),
        )

    @property
    def _memory(self) -> Memory:
        return self._own or self._fixed.memory
