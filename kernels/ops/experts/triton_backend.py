"""The terms of a step by the Triton kernels: one launch of shrink and one of expand for each parameter of a module.

The combinations of a step go to the device in one copy for all modules, when the batch changes. Sizes of grids follow
from the number of pairs, so no host looks at where the tokens go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ...device.copies import to_device
from ...device.occupancy import multiprocessors
from ...integers import cdiv, round_up
from ..formulas import Op
from ..site_plan import OpSegment
from .combinations import Combinations, all_combinations
from .routing import Routing, most_tiles, route, tile_heads
from .triton_kernels import expert_expand_kernel, expert_shrink_kernel
from .triton_sort import MOST_PAIRS, route_and_tile

ALIGNMENT = 8  # elements, that factors are read in wide loads from
_FIELD = 8  # bytes
_PROGRAMS = 8  # of shrink on each multiprocessor, that the features are split for
_FEW = 32  # pairs of a group on average, below which tiles are small

Key = TypeVar("Key")


@dataclass(frozen=True)
class Blocks:
    """How both kernels are cut and compiled.

    block_m: most pairs of a tile. block_r: ranks of a unit. block_k, block_n: input and output features at a time.
    least_chunk: fewest features of a part of shrink.
    """

    block_m: int
    block_k: int
    block_n: int
    warps: int = 4
    stages: int = 2
    block_r: int = 16
    least_chunk: int = 512


FEW_ROWS = Blocks(block_m=16, block_k=256, block_n=256)
MANY_ROWS = Blocks(block_m=32, block_k=64, block_n=128, stages=3)


class Units(NamedTuple):
    """The units of one parameter, as in `triton_kernels.py`.

    spans: first unit and number of units of each combination. most: the largest number. alignment: divides all offsets
    and ranks.
    """

    spans: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]
    most: int
    alignment: int


class OnDevice(NamedTuple):
    """`Units` on the device."""

    spans: torch.Tensor
    units: torch.Tensor
    most: int
    alignment: int


class TritonExpertTerms:
    """`ExpertTerms` of one module in one step.

    blocks: for tests; by default chosen by the mean number of pairs of a group.
    """

    def __init__(
        self,
        combinations: Combinations,
        arena: torch.Tensor,
        of_row: torch.Tensor,
        weights: torch.Tensor,
        units: Mapping[str, OnDevice],
        blocks: Blocks | None = None,
    ) -> None:
        self.num_combinations = len(combinations.members)
        self.of_row = of_row
        self._num_rows = combinations.num_rows
        self._arena = arena
        self._weights = weights
        self._units = units
        self._blocks = blocks
        self._tiles: tuple[Blocks, torch.Tensor] | None = None  # of the pairs that were routed last

    def route(self, experts: torch.Tensor, num_experts: int) -> Routing:
        """Sort the pairs of the step, and find its tiles. experts: (tokens, k), the experts of each token."""
        pairs, groups = self._num_rows * experts.shape[1], num_experts * (self.num_combinations - 1)
        blocks = self._blocks or (FEW_ROWS if pairs < _FEW * groups else MANY_ROWS)
        most = most_tiles(pairs, groups, blocks.block_m)
        if 0 < experts.numel() <= MOST_PAIRS:
            work = self.of_row, num_experts, self.num_combinations, blocks.block_m, most
            routing, heads = route_and_tile(experts, *work)
        else:
            routing = route(experts, self.of_row, num_experts, self.num_combinations)
            heads = tile_heads(routing, blocks.block_m, most)
        self._tiles = blocks, heads
        return routing

    def add_(self, parameter: str, x: torch.Tensor, y: torch.Tensor, routing: Routing) -> None:
        """Compute `y[i] += sum over the adapters of place i's token of weight · b[e] (a[e] x[i])`.

        x: (pairs, in). y: (pairs, out). Rows are contiguous, in the order of `routing`, which must be the last that
        `route` made.
        """
        if (there := self._units.get(parameter)) is None or not len(x):
            return
        assert self._tiles is not None, "not routed"
        blocks, heads = self._tiles
        columns = there.most * blocks.block_r
        split, chunk = parts_of(blocks, len(heads) * there.most, x.shape[1], multiprocessors(x.device))
        h = torch.empty(split, len(x), columns, dtype=torch.float32, device=x.device)
        self._shrink(there, blocks, routing, heads, x, h, chunk)
        self._expand(there, blocks, routing, heads, h, y)

    def _shrink(
        self,
        there: OnDevice,
        blocks: Blocks,
        routing: Routing,
        heads: torch.Tensor,
        x: torch.Tensor,
        h: torch.Tensor,
        chunk: int,
    ) -> Any:
        return expert_shrink_kernel[(len(heads), there.most, h.shape[0])](
            x,
            self._arena,
            h,
            routing.keys,
            routing.order,
            heads,
            there.spans,
            there.units,
            self._weights,
            x.stride(0),
            x.shape[1],
            h.shape[2],
            chunk // blocks.block_k,
            h.shape[1],
            self._weights.shape[1],
            routing.combinations,
            routing.k,
            **shrink_options(blocks, there.alignment),
        )

    def _expand(
        self,
        there: OnDevice,
        blocks: Blocks,
        routing: Routing,
        heads: torch.Tensor,
        h: torch.Tensor,
        y: torch.Tensor,
    ) -> Any:
        options = expand_options(blocks, there.alignment)
        return expert_expand_kernel[(len(heads), cdiv(y.shape[1], options["BLOCK_N"]))](
            h,
            self._arena,
            y,
            routing.keys,
            heads,
            there.spans,
            there.units,
            y.stride(0),
            y.shape[1],
            h.shape[2],
            h.shape[0],
            h.shape[1],
            routing.combinations,
            **options,
        )


def shrink_options(blocks: Blocks, alignment: int) -> dict[str, int]:
    """Return the kernel's constants and the compiler's options."""
    return {"BLOCK_K": blocks.block_k, **_options(blocks, alignment)}


def expand_options(blocks: Blocks, alignment: int) -> dict[str, int]:
    """Return the kernel's constants and the compiler's options.

    Unaligned factors are read by half as many columns at once: an address for each number takes registers.
    """
    return {"BLOCK_N": blocks.block_n // (1 if alignment > 1 else 2), **_options(blocks, alignment)}


def _options(blocks: Blocks, alignment: int) -> dict[str, int]:
    sizes = {"BLOCK_M": blocks.block_m, "BLOCK_R": blocks.block_r, "ALIGN": alignment}
    return sizes | {"num_warps": blocks.warps, "num_stages": blocks.stages}


def parts_of(blocks: Blocks, units: int, in_features: int, num_multiprocessors: int) -> tuple[int, int]:
    """Return (parts, features of each but the last) of shrink: as many parts as fill the device. units: of shrink."""
    wanted = cdiv(_PROGRAMS * num_multiprocessors, max(units, 1))
    chunk = round_up(max(cdiv(in_features, wanted), blocks.least_chunk), blocks.block_k)
    return cdiv(in_features, chunk), chunk


def triton_terms(
    work: Mapping[Key, Combinations], device: torch.device, blocks: Blocks | None = None
) -> dict[Key, TritonExpertTerms]:
    """Make the terms of each module, with one copy to the device. All factors lie in one arena."""
    arena = next(op.fields["a"] for combinations in work.values() for op in combinations.ops)
    arena = torch.empty(0, dtype=arena.dtype, device=device).set_(arena.untyped_storage())
    units = {key: units_of(combinations, blocks or FEW_ROWS) for key, combinations in work.items()}
    arrays: list[npt.NDArray[Any]] = []
    for key, combinations in work.items():
        arrays += [combinations.of_row, combinations.weights]
        arrays += [array for one in units[key].values() for array in (one.spans, one.units)]
    distinct = {id(array): array for array in arrays}
    there = dict(zip(distinct, _copied([*distinct.values()], device), strict=True))
    return {
        key: TritonExpertTerms(
            combinations,
            arena,
            there[id(combinations.of_row)],
            there[id(combinations.weights)],
            {name: OnDevice(there[id(one.spans)], there[id(one.units)], *one[2:]) for name, one in units[key].items()},
            blocks,
        )
        for key, combinations in work.items()
    }


def warm_up(parameters: Sequence[tuple[str, int, int, int]], dtype: torch.dtype, device: torch.device) -> None:
    """Compile the kernels that steps may launch, which takes seconds for each that triton has not kept on disk.

    parameters: name, experts, in_features and out_features of each.
    """
    sizes = [experts * 2 * ALIGNMENT * max(widths) for _, experts, *widths in parameters]
    memory = torch.zeros(max(sizes), dtype=dtype, device=device)
    for blocks, rank in product((FEW_ROWS, MANY_ROWS), (ALIGNMENT, 1)):
        for name, experts, width_in, width_out in parameters:
            a, b = memory[: experts * rank * width_in], memory[-experts * rank * width_out :]
            fields = {"a": a.view(experts, rank, width_in), "b": b.view(experts, width_out, rank), "parameter": name}
            segments = [OpSegment(Op("expert_low_rank", fields), 1.0, 0, 1)]
            terms = triton_terms(all_combinations({name: segments}, 1), device, blocks)[name]
            first = torch.zeros(1, 1, dtype=torch.int64, device=device)
            terms.add_(name, memory[:width_in].view(1, -1), memory.new_zeros(1, width_out), terms.route(first, experts))


def units_of(combinations: Combinations, blocks: Blocks) -> dict[str, Units]:
    """Return the units of each parameter that any adapter has factors of."""
    return {
        parameter: _units_of(combinations, parameter, blocks.block_r)
        for parameter in dict.fromkeys(op.fields["parameter"] for op in combinations.ops)
    }


def _units_of(combinations: Combinations, parameter: str, block_r: int) -> Units:
    spans, units = [], list[tuple[int, int, int, int, int]]()
    for members in combinations.members:
        start = len(units)
        for row, number in enumerate(members):
            fields = combinations.ops[number].fields
            if fields["parameter"] == parameter:
                a, b, rank = fields["a"], fields["b"], fields["a"].shape[1]
                offsets = a.storage_offset(), b.storage_offset()
                units += [(*offsets, rank, first, row) for first in range(0, rank, block_r)]
        spans.append((start, len(units) - start))
    table = np.array(units, dtype=np.int64).reshape(-1, 5)
    aligned = not (table[:, :3] % ALIGNMENT).any()
    most = max(count for _, count in spans)
    return Units(np.array(spans, dtype=np.int64), table, most, ALIGNMENT if aligned else 1)


def _copied(arrays: Sequence[npt.NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Copy all arrays to the device at once. Each begins at a multiple of 16 bytes there."""
    starts = np.cumsum([0, *(round_up(array.nbytes, 2 * _FIELD) for array in arrays)])
    memory = np.zeros(int(starts[-1]), dtype=np.uint8)
    for start, array in zip(starts, arrays, strict=False):
        memory[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
    there = to_device(memory, device)
    return [
        there[start : start + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for start, array in zip(starts.tolist(), arrays, strict=False)
    ]
