"""The bypasses on a GPU: one launch for each group, whatever adapters run.

Tables on the device say where each slot's factors lie; their addresses never change, and attaching an adapter is one
small copy that no kernel waits for. The work list is made when the step's segments are others than the last one's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ...device.occupancy import multiprocessor, multiprocessors, programs_at_once, resources
from ...device.step_memory import StepMemory
from ..layout import BlobLayout, Group, Rows, Segment
from ..worklist import RECORD_FIELDS, h_elements, most_records
from . import tuning
from .kernels import MAX_SITES, bypass_kernel
from .plan import BypassPlan
from .slots import ALIGNMENT, SlotRow, SlotTable
from .tuning import Blocks

MIXED_RANK = 64  # of a site: up to which there is memory for adapters in mixtures of many
_LEAST_BLOCK_R = 16


class Memory(NamedTuple):
    """records: int32, the step's lists. h: fp32, what shrink gives expand."""

    records: torch.Tensor
    h: torch.Tensor


class TritonBypass:
    """`BypassBackend` in Triton.

        for each segment s: y[s.start:s.end] += s.weight · (x[s.start:s.end] Aᵀ) Bᵀ

    x and y have the arena's dtype and adjoining columns. h stays in fp32, sums run in fp32, and the deltas of all
    segments of a row are added to y with one rounding. No floating-point atomics: the same step gives the same bits.

    A launch depends on the step only through device memory whose addresses stay. So a CUDA graph that was captured
    after `begin(..., capacity=n)` may be replayed after any other `begin` of that capacity that returned True. With a
    capacity every group is launched, whatever the step has for it.

    That memory has a size for good. A row counts once for each adapter that works on it. There are lists and h for an
    adapter of `max_rank` on all sites of each of `max_rows` rows, and for those of up to MIXED_RANK on `max_entries`:
    for Llama-3.1-8B, 2,048 rows, 256 sequences of mixtures of 64 (16,448 entries) and ranks up to 512 that is 13 MB of
    h and 15 MB of lists. Steps that need more, which takes mixtures of several large adapters on most rows, run in
    memory of their own, and in no graph.

    max_rows: of any step. max_entries: rows of all segments of any step together; `max_rows` if not given. memory: for
    the lists, which whoever launches sends; without one `begin` does.
    num_programs: how many programs run at once; more than the device holds together would wait for each other for ever.
    batch_invariant: a row's bits depend on its own adapters alone, whatever else runs in the step.
    pdl: launches may begin before the kernel ahead of them has ended, on GPUs from sm_90 on.
    """

    takes_rows = True

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
        num_programs: int | None = None,
        batch_invariant: bool = False,
        pdl: bool = False,
        table: tuning.Tuning | None = None,
    ) -> None:
        self._arena = arena
        self._groups = tuple(groups)
        self._slots = SlotTable(arena.device, self._groups, max_slots)
        self._num_programs = num_programs
        self._multiprocessors = multiprocessors(arena.device)
        self._tuning = table or _tuning(arena)
        self._batch_invariant = batch_invariant
        self._pdl = pdl
        widest = max((len(group.out_features) for group in self._groups), default=0)
        rank, mixed = max_rank * widest, min(max_rank, MIXED_RANK) * widest
        entries = max(max_entries or 0, max_rows)
        records = max(most_records(max_rows, rank, _LEAST_BLOCK_R), most_records(entries, mixed, _LEAST_BLOCK_R))
        self._most_fields = len(Rows) * records * RECORD_FIELDS
        self._step_memory, self._shared = memory or StepMemory(arena.device), memory is not None
        self._front = self._step_memory.reserve(len(self._groups) * RECORD_FIELDS, self._most_fields)
        if not self._shared:
            self._step_memory.begin()
        elements = max(max_rows * h_elements(rank), entries * h_elements(mixed))
        self._h = torch.zeros(elements, dtype=torch.float32, device=arena.device)
        self._counters = torch.zeros(max_rows + 1, dtype=torch.int32, device=arena.device)  # no tile is without a row
        self._most_programs: dict[Blocks, int] = {}
        self._plan = BypassPlan(
            self._groups, self._slots, self._tuning, self._programs, len(self._h), batch_invariant=batch_invariant
        )
        self._memory: Memory | None = None  # of a step that has its own; this and those below are set by `begin`
        self._work: object = None
        self._fits = True
        self._launches_all = False
        self._started: set[int] = set()  # groups, by `start`

    def prepare(self, base: int, layout: BlobLayout) -> SlotRow:
        return self._slots.prepare(base, layout)

    def attach(self, slot: int, prepared: SlotRow) -> None:
        self._slots.attach(slot, prepared)
        self._work = None

    def detach(self, slot: int) -> None:
        self._slots.detach(slot)
        self._work = None

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment], *, capacity: int | None = None) -> bool:
        work = (tuple(tokens), tuple(logits), capacity)
        changed = work != self._work
        if changed:
            self._work = work
            self._launches_all = capacity is not None
            self._plan.update({Rows.TOKENS: tokens, Rows.LOGITS: logits}, capacity)
            self._fits = self._settle(captured=capacity is not None)
        if self._shared:
            return self._fits and self._write()
        if changed and self._fits:
            self._step_memory.begin()
            self._write()
            self._step_memory.send()
        return self._fits

    def _settle(self, captured: bool) -> bool:
        """Where the step's lists and h lie. False if what was captured does not serve the step."""
        listed = self._plan.listed()
        assert listed.num_tiles < len(self._counters), "a step of more rows than there may be"
        room = listed.lists.size <= self._most_fields and listed.h_size <= len(self._h)
        fits = not captured or (room and self._slots.alignment == ALIGNMENT)
        self._memory = self._own_memory() if fits and not room else None
        return fits

    def _write(self) -> bool:
        """The lists where they are sent from, unless the step has memory of its own."""
        if self._memory is None:
            memory = self._step_memory
            place = memory.take(self._plan.num_fields)
            headers, lists, *_ = self._plan.listed((place - self._front) // RECORD_FIELDS)
            memory.at(self._front, headers.size)[:] = headers.reshape(-1)
            memory.at(place, lists.size)[:] = lists.reshape(-1)
        return True

    def _own_memory(self) -> Memory:
        listed = self._plan.listed(len(self._groups))
        flat = self._slots.pinned(np.concatenate([listed.headers, listed.lists]).ravel())
        return Memory(flat.to(self._arena.device, non_blocking=True), self._h.new_empty(listed.h_size))

    def start(self, group: int, x: torch.Tensor) -> None:
        """Shrink on the current stream, such as beside the base's product: the group's next `add_` then only expands.

        Whatever is added before that must have been added when this runs: all groups share one h.
        """
        if self._launches(group) and not self._groups[group].gather:
            self._launch(group, x, (), 0, shrink=True, expand=False)
            self._started.add(group)

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        if self._launches(group):
            self._add(group, x, outputs)

    def warm_up(self) -> None:
        """Compile all that steps may launch, which takes seconds for each kernel that triton has not kept on disk.

        Fewer programs run from then on where the device does not hold as many as were planned.
        """
        for blocks in [self._tuning.invariant] if self._batch_invariant else self._tuning.all_blocks():
            if kernels := self.compile(blocks):
                there = multiprocessor(self._arena.device)
                most = min(programs_at_once(resources(kernel), there) for kernel in kernels)
                self._most_programs[blocks] = self._multiprocessors * max(1, min(most, blocks.programs))

    def compile(self, blocks: Blocks) -> list[Any]:
        """Launch each kind of group once, without work. The kernels as triton made them; none in its interpreter."""
        headers = self._arena.new_zeros(len(self._groups), RECORD_FIELDS, dtype=torch.int32)
        headers[:, 4] = 1  # the kernel divides by the split
        self._memory, self._plan.blocks = Memory(headers, self._h), [blocks] * len(self._groups)
        shapes = {(group.in_features, group.out_features, group.gather): i for i, group in enumerate(self._groups)}
        kernels = []
        for (width, out_features, gather), index in shapes.items():
            x = self._arena.new_zeros(1, dtype=torch.int64) if gather else self._arena.new_zeros(1, width)
            kernels += self._add(index, x, [self._arena.new_zeros(1, out) for out in out_features])
        self._work = self._memory = None
        return [kernel for kernel in kernels if kernel is not None]

    def _add(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> list[Any]:
        started = group in self._started
        self._started.discard(group)
        return [
            self._launch(group, x, outputs[i : i + MAX_SITES], i, shrink=not (started or i), expand=True)
            for i in range(0, len(outputs), MAX_SITES)
        ]

    def _launch(
        self,
        group: int,
        x: torch.Tensor,
        outputs: Sequence[torch.Tensor | None],
        first_site: int,
        *,
        shrink: bool,
        expand: bool,
    ) -> Any:
        spec, blocks = self._groups[group], self._plan.blocks[group]
        records, h = self._memory or Memory(self._step_memory.there[self._front :], self._h)
        y = [self._arena if output is None else output for output in outputs] + [self._arena] * MAX_SITES
        strides = [0 if output is None else output.stride(0) for output in outputs] + [0] * MAX_SITES
        widths = [0 if output is None else output.shape[1] for output in outputs] + [0] * MAX_SITES
        return bypass_kernel[(self._programs(blocks),)](
            x,
            *y[:MAX_SITES],
            self._arena,
            self._slots.table,
            records,
            h,
            self._counters,
            x.stride(0),
            *strides[:MAX_SITES],
            spec.in_features,
            *widths[:MAX_SITES],
            *self._slots.table.stride()[:2],
            group,
            first_site,
            len(self._counters) - 1,
            SHRINK=shrink,
            EXPAND=expand,
            GATHER=spec.gather,
            ALIGN=self._slots.alignment,
            PDL=self._pdl,
            **compile_options(blocks, self._arena.device, pdl=self._pdl),
        )

    def _launches(self, group: int) -> bool:
        return self._plan.busy[group] or self._launches_all

    def _programs(self, blocks: Blocks) -> int:
        most = self._most_programs.get(blocks, self._multiprocessors * blocks.programs)
        return self._num_programs or most


def compile_options(blocks: Blocks, device: torch.device, *, pdl: bool = False) -> dict[str, Any]:
    """The kernel's constants that blocks decide, and the compiler's options."""
    options: dict[str, Any] = {
        "GEMV": blocks.gemv,
        "MAX_SPLIT": blocks.max_split,
        "BLOCK_M": blocks.block_m,
        "BLOCK_R": blocks.block_r,
        "BLOCK_K": blocks.block_k,
        "BLOCK_N": blocks.block_n,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        "enable_fp_fusion": True,
    }
    if device.type == "cuda" and torch.version.hip is None:
        options["maxnreg"] = blocks.registers
        if pdl:
            options["launch_pdl"] = True
    return options


def _tuning(arena: torch.Tensor) -> tuning.Tuning:
    if not arena.is_cuda:
        return tuning.Tuning(otherwise=tuning.defaults(arena.element_size()))
    properties = torch.cuda.get_device_properties(arena.device)
    otherwise = tuning.defaults(arena.element_size(), properties.major, properties.warp_size)
    return tuning.load(properties.name, otherwise)
