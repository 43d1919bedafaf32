"""The kinds of primitives that have a kernel, and how each is launched. `KERNELS` has one row for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ...integers import cdiv
from ..batches import RowRange
from ..formulas import Op, Stage
from ..site_plan import OpSegment, StageTensors
from .kernels import kronecker_kernel, pair_kernel, rotation_kernel, sparse_kernel
from .lists import PlanLists, Tiles, cut_tiles

Constants = Mapping[str, int]


class Kernel(NamedTuple):
    """The kernel of one kind of primitive.

    tensors: the fields of the primitive that an entry addresses, in this order. run(launch, x, y): enqueues the kernel;
    x is the tensor that the formula reads. block_m: rows of a tile.
    """

    tensors: tuple[str, ...]
    run: Callable[["Launch", torch.Tensor, torch.Tensor], None]
    block_m: int


@dataclass(frozen=True)
class Launch:
    """All segments of one kind at one site, as one launch.

    op: one of their primitives, for its shapes. arena, ints: the whole arena, as its own numbers and as int32. lists:
    of the plan, in which the tiles begin at `first_tile`.
    """

    op: Op
    arena: torch.Tensor
    ints: torch.Tensor
    lists: PlanLists
    first_tile: int
    tiles: int
    width: int

    def add_(self, tensors: StageTensors) -> None:
        x = tensors.before if tensors.stage is Stage.OUTPUT else tensors.x
        y = tensors.y[..., : self.width or tensors.base_width]
        assert x.dim() == y.dim() == 2, "a module that reads rows, not heads"
        assert x.stride(1) == y.stride(1) == 1
        KERNELS[self.op.kind].run(self, x, y)

    @property
    def records(self) -> torch.Tensor:
        """Return the plan's lists on the device."""
        assert self.lists.on_device is not None, "the plan's lists are sent before it runs"
        return self.lists.on_device


def tiles_of(kind: str, ranges: Sequence[RowRange], weights: Sequence[float]) -> Tiles:
    """Cut ranges of rows into tiles for the kernel of a kind."""
    return cut_tiles(ranges, weights, KERNELS[kind].block_m)


def launch(segments: Sequence[OpSegment], tiles: Tiles, lists: PlanLists) -> Launch:
    """Make the launch of segments that share one key, with all their tensors in one arena."""
    op, names = segments[0].op, KERNELS[segments[0].op.kind].tensors
    offsets = np.array([[segment.op.offsets[name] for name in names] for segment in segments], dtype=np.int64)
    numbers: torch.Tensor = op.fields[names[-1]]
    arena, ints = (lists.arena(numbers, dtype) for dtype in (numbers.dtype, torch.int32))
    return Launch(op, arena, ints, lists, lists.add(tiles, offsets), len(tiles.tiles), segments[0].width)


COMPILER = {"num_warps": 4, "enable_fp_fusion": True}
ROTATION = {"BLOCK_M": 2, "BLOCK_N": 32, "BLOCK_J": 32, **COMPILER}
PAIRS = {"BLOCK_M": 2, "BLOCK_N": 512, **COMPILER}
SPARSE = {"BLOCK_M": 2, "BLOCK_N": 32, "BLOCK_J": 32, **COMPILER}
KRONECKER = {"BLOCK_A": 64, "BLOCK_B": 16, "BLOCK_C": 32, "BLOCK_D": 32, **COMPILER}


def _rotate(launch: Launch, x: torch.Tensor, y: torch.Tensor) -> None:
    blocks, width = launch.op.fields["blocks"], y.shape[1]
    rotation_kernel[(launch.tiles, cdiv(width, ROTATION["BLOCK_N"]))](
        x,
        y,
        launch.arena,
        launch.records,
        x.stride(0),
        y.stride(0),
        launch.first_tile,
        width,
        blocks.shape[0] * blocks.shape[1],
        blocks.shape[2],
        **ROTATION,
    )


def _turn_pairs(launch: Launch, before: torch.Tensor, y: torch.Tensor) -> None:
    width = y.shape[1]
    pair_kernel[(launch.tiles, cdiv(width, 2 * PAIRS["BLOCK_N"]))](
        before,
        y,
        launch.arena,
        launch.records,
        before.stride(0),
        y.stride(0),
        launch.first_tile,
        width,
        launch.op.fields["group"] // 2,
        **PAIRS,
    )


def _add_sparse(launch: Launch, x: torch.Tensor, y: torch.Tensor) -> None:
    width = y.shape[1]
    sparse_kernel[(launch.tiles, cdiv(width, SPARSE["BLOCK_N"]))](
        x,
        y,
        launch.arena,
        launch.ints,
        launch.records,
        x.stride(0),
        y.stride(0),
        launch.first_tile,
        width,
        **SPARSE,
    )


def _add_kronecker(launch: Launch, x: torch.Tensor, y: torch.Tensor) -> None:
    (a, c), (b, d) = launch.op.fields["w1"].shape, launch.op.fields["w2"].shape
    blocks = cdiv(a, KRONECKER["BLOCK_A"]) * cdiv(b, KRONECKER["BLOCK_B"])
    kronecker_kernel[(launch.tiles, blocks)](
        x, y, launch.arena, launch.records, x.stride(0), y.stride(0), launch.first_tile, a, b, c, d, **KRONECKER
    )


KERNELS: Mapping[str, Kernel] = {
    "input_rotation": Kernel(("blocks",), _rotate, ROTATION["BLOCK_M"]),
    "pair_rotation": Kernel(("d", "c"), _turn_pairs, PAIRS["BLOCK_M"]),
    "sparse": Kernel(("starts", "columns", "values"), _add_sparse, SPARSE["BLOCK_M"]),
    "kronecker": Kernel(("w1", "w2"), _add_kronecker, 1),
}
