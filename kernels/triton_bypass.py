"""The bypasses on a GPU: one launch for each group, whatever adapters run.

Tables on the device say where each slot's factors lie; their addresses never change, and attaching an adapter is one
small copy that no kernel waits for. The step's work list goes over in one copy, and in none while it stays the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from . import tuning
from .layout import BlobLayout, Group, Rows, Segment
from .occupancy import multiprocessor, programs_at_once, resources
from .slots import ALIGNMENT, SlotRow, SlotTable
from .triton_kernels import MAX_SITES, bypass_kernel
from .tuning import Blocks
from .worklist import Entries, Lists, WorkList, cut, h_elements, lists_of, pack

LIST_FIELDS = 1 << 22  # of the lists for which there is memory from the start


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

    That memory has a size for good: lists of 16 MB, and h for an adapter of `max_rank` on all sites of every row, such
    as 13 MB for 2,048 rows of Llama-3.1-8B and 101 MB for 16,384. Steps that need more, which takes mixtures of several
    large adapters on most rows, run in memory of their own, and in no graph.

    max_rows: of any step.
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
        max_rank: int = 512,
        num_programs: int | None = None,
        batch_invariant: bool = False,
        pdl: bool = False,
        table: tuning.Tuning | None = None,
    ) -> None:
        self._arena = arena
        self._groups = tuple(groups)
        self._slots = SlotTable(arena.device, self._groups, max_slots)
        self._num_programs = num_programs
        self._multiprocessors = _multiprocessors(arena.device)
        self._tuning = table or _tuning(arena)
        self._batch_invariant = batch_invariant
        self._pdl = pdl
        widest = max((len(group.out_features) for group in self._groups), default=0)
        self._kept = Memory(
            torch.zeros(LIST_FIELDS, dtype=torch.int32, device=arena.device),
            torch.zeros(max_rows * h_elements(max_rank * widest), dtype=torch.float32, device=arena.device),
        )
        self._counters = torch.zeros(max_rows + 1, dtype=torch.int32, device=arena.device)  # no tile is without a row
        self._most_programs: dict[Blocks, int] = {}
        self._memory = self._kept  # this and those below are the step's, set by `begin`
        self._work: object = None
        self._fits = True
        self._blocks: list[Blocks] = []
        self._busy: list[bool] = []
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
        if work == self._work:
            return self._fits
        self._work = work
        self._launches_all = capacity is not None
        segments = {Rows.TOKENS: tokens, Rows.LOGITS: logits}
        self._blocks = self._choose(segments, capacity)
        lists = self._lists(segments)
        self._busy = [item is not None for item in lists]
        self._fits = self._place(pack(lists, self._split), captured=capacity is not None)
        return self._fits

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
        self.begin([], [])
        self._blocks = [blocks] * len(self._groups)
        shapes = {(group.in_features, group.out_features, group.gather): i for i, group in enumerate(self._groups)}
        kernels = []
        for (width, out_features, gather), index in shapes.items():
            x = self._arena.new_zeros(1, dtype=torch.int64) if gather else self._arena.new_zeros(1, width)
            kernels += self._add(index, x, [self._arena.new_zeros(1, out) for out in out_features])
        self._work = None
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
        spec, blocks = self._groups[group], self._blocks[group]
        y = [self._arena if output is None else output for output in outputs] + [self._arena] * MAX_SITES
        strides = [0 if output is None else output.stride(0) for output in outputs] + [0] * MAX_SITES
        widths = [0 if output is None else output.shape[1] for output in outputs] + [0] * MAX_SITES
        return bypass_kernel[(self._programs(blocks),)](
            x,
            *y[:MAX_SITES],
            self._arena,
            self._slots.table,
            self._memory.records,
            self._memory.h,
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
        return self._busy[group] or self._launches_all

    def _choose(self, segments: Mapping[Rows, Sequence[Segment]], capacity: int | None) -> list[Blocks]:
        """For each group, by the largest mean rank of its sites in the step; by 0 where there is a capacity."""
        if self._batch_invariant:
            return [self._tuning.invariant] * len(self._groups)
        tokens, ranks = {}, {}
        for rows, there in segments.items():
            tokens[rows] = capacity or max((segment.end for segment in there), default=0)
            ranks[rows] = self._slots.most_ranks([] if capacity else [segment.slot for segment in there])
        return [
            self._tuning.blocks(tokens[group.rows], ranks[group.rows][index], group.in_features)
            for index, group in enumerate(self._groups)
        ]

    def _lists(self, segments: Mapping[Rows, Sequence[Segment]]) -> list[Lists | None]:
        """Those of each group; one object for all groups whose lists are alike."""
        entries: dict[tuple[Rows, int], Entries] = {}
        made: dict[object, Lists | None] = {}
        lists = []
        for index, (group, blocks) in enumerate(zip(self._groups, self._blocks, strict=True)):
            key = (group.rows, blocks.block_m)
            if key not in entries:
                entries[key] = cut(segments[group.rows], blocks.block_m)
            slots = entries[key].slot
            ranks, works = self._slots.ranks[index], self._slots.works[index]
            alike = (*key, blocks.block_r, ranks[slots].tobytes(), works[slots].tobytes())
            if alike not in made:
                made[alike] = lists_of(entries[key], ranks, works, blocks.block_r) if works[slots].any() else None
            lists.append(made[alike])
        return lists

    def _split(self, group: int, lists: Lists) -> int:
        blocks, spec = self._blocks[group], self._groups[group]
        if spec.gather:
            return 1
        if self._batch_invariant:  # were it by the lists, a row's sums would depend on the step
            return tuning.best_split(blocks, 1, self._programs(blocks), spec.in_features)
        best = tuning.best_split(blocks, len(lists.units), self._programs(blocks), spec.in_features)
        return max(1, min(best, len(self._kept.h) // max(lists.h_size, 1)))

    def _programs(self, blocks: Blocks) -> int:
        most = self._most_programs.get(blocks, self._multiprocessors * blocks.programs)
        return self._num_programs or most

    def _place(self, listed: WorkList, *, captured: bool) -> bool:
        """Send the lists over. False, and nothing sent, if what was captured does not serve the step."""
        assert listed.num_tiles < len(self._counters), "a step of more rows than there may be"
        kept = self._kept
        room = listed.records.size <= len(kept.records) and listed.h_size <= len(kept.h)
        if captured and not (room and self._slots.alignment == ALIGNMENT):
            return False
        flat = self._slots.pinned(listed.records.ravel())
        self._memory = kept if room else Memory(kept.records.new_empty(len(flat)), kept.h.new_empty(listed.h_size))
        self._memory.records[: len(flat)].copy_(flat, non_blocking=True)
        return True


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


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _tuning(arena: torch.Tensor) -> tuning.Tuning:
    if not arena.is_cuda:
        return tuning.Tuning(otherwise=tuning.defaults(arena.element_size()))
    properties = torch.cuda.get_device_properties(arena.device)
    otherwise = tuning.defaults(arena.element_size(), properties.major, properties.warp_size)
    return tuning.load(properties.name, otherwise)
