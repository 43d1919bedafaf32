"""`ColumnProducts` by Triton's kernels: one launch to bring adapters in, and one a group and step to fill in h."""

import itertools
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ...device.copies import pinned, to_device
from ...integers import cdiv, round_up
from ..layout import Segment
from ..torch.factors import Factors
from .kernels import COLUMN_FIELDS, fill_kernel, store_kernel
from .places import needed
from .products import Held

Columns = npt.NDArray[np.int64]
"""(COLUMN_FIELDS, ranks) of one adapter and group, as in the table, without slots."""

ALIGNMENT = 8  # elements, of factors that kernels read in wide loads


class LaunchConfig(NamedTuple):
    """How the programs of a launch are cut and compiled."""

    blocks: dict[str, int]
    warps: int
    stages: int


SHORT_STEP = 4096  # rows, below which tiles of 32 are not enough for all multiprocessors
FILL = LaunchConfig({"BLOCK_M": 32, "BLOCK_C": 64, "BLOCK_K": 128}, 4, 3)
FILL_SHORT = LaunchConfig({"BLOCK_M": 16, "BLOCK_C": 64, "BLOCK_K": 128}, 4, 3)
FILL_PLAIN = LaunchConfig({"BLOCK_M": 32, "BLOCK_C": 32, "BLOCK_K": 32}, 4, 2)
"""For fp32, which is for checks, and for unaligned factors."""
STORE = LaunchConfig({"BLOCK_N": 128, "BLOCK_C": 16}, 4, 1)


class TritonColumns:
    """`ColumnProducts` in Triton. Writes the weights, and holds their addresses.

    weights: (sum of out_features, in_features + columns), by group.
    """

    def __init__(
        self, arena: torch.Tensor, weights: Mapping[int, torch.Tensor], in_features: Mapping[int, int]
    ) -> None:
        self._arena = arena
        self._weights = weights  # whose addresses are in the table
        self._places = {group: place for place, group in enumerate(weights)}
        self._columns = min((w.shape[1] - in_features[group] for group, w in weights.items()), default=0)
        self._rows = max((len(w) for w in weights.values()), default=0)
        groups = [[w.data_ptr(), w.stride(0), in_features[group], len(w)] for group, w in weights.items()]
        self._groups = torch.tensor(groups, dtype=torch.int64).to(arena.device)
        self._fields = np.zeros((len(weights), COLUMN_FIELDS, self._columns), dtype=np.int64)
        self._fields[:, 0] = -1
        self._table = torch.from_numpy(self._fields.copy()).to(arena.device)
        self._align = ALIGNMENT if all(width % ALIGNMENT == 0 for width in in_features.values()) else 1
        self.begin({}, [])

    def warm_up(self) -> None:
        """Compile all kernels with launches that change nothing, so that no step waits for a compiler."""
        if self._weights:
            self._store([(0, 0, 0)])
        for group, weight in self._weights.items():
            wide = weight.new_zeros(1, weight.shape[1])  # the interpreter warns of products of what memory held
            own = wide[:, : weight.shape[1] - self._columns]
            for rows, x in itertools.product((1, SHORT_STEP), (own, own.clone())):
                self._launch(self._shape(rows), group, x, wide, self._columns)

    def prepare(self, factors: Mapping[int, Factors]) -> Mapping[int, Columns]:
        return {group: _columns(there) for group, there in factors.items()}

    def store(self, held: Mapping[int, Held[Mapping[int, Columns]]]) -> None:
        slots = self._fields[:, 0]
        slots[np.isin(slots, [*held])] = -1  # where they were before
        jobs = []
        for slot, (form, columns) in held.items():
            for group, first in columns.items():
                place, fields = self._places[group], form[group]
                ranks, count = fields.shape[1], needed(fields.shape[1])
                own = self._fields[place, :, first : first + count]
                own[:, :ranks], own[:, ranks:] = fields, 0
                own[0, :ranks], own[0, ranks:] = slot, -1
                jobs.append((place, first, count))
        if any((form[group][1] % ALIGNMENT).any() for form, _ in held.values() for group in form):
            self._align = 1
        if jobs:
            self._table.copy_(pinned(self._fields.copy(), self._arena.device), non_blocking=True)
            self._store(jobs)

    def _store(self, jobs: Sequence[tuple[int, int, int]]) -> None:
        """Launch the copies. jobs: as in the kernel's list."""
        table = to_device(np.array(jobs, dtype=np.int64), self._arena.device)
        store_kernel[(len(jobs), cdiv(self._rows, STORE.blocks["BLOCK_N"]))](
            self._arena,
            self._table,
            self._groups,
            table,
            self._columns,
            LARGEST=torch.finfo(self._arena.dtype).max,
            **_options(STORE),
        )

    def begin(self, held: Mapping[int, Held[Mapping[int, Columns]]], segments: Sequence[Segment]) -> None:
        """Send the runs and weights of a step. Rows beyond the segments are in no run with an adapter."""
        runs, weights = _runs(segments, max(held, default=0) + 1)
        both = np.concatenate([runs, weights.view(np.int32).ravel()])
        there = to_device(both, self._arena.device)
        self._runs = there[: len(runs)]
        self._step_weights = there[len(runs) :].view(torch.float32).view(weights.shape)

    def fill(self, group: int, x: torch.Tensor, wide: torch.Tensor, used: int) -> None:
        self._launch(self._shape(len(x)), group, x, wide, used)

    def _launch(self, shape: LaunchConfig, group: int, x: torch.Tensor, wide: torch.Tensor, used: int) -> None:
        rows, in_features = x.shape
        grid = (cdiv(rows, shape.blocks["BLOCK_M"]), cdiv(used, shape.blocks["BLOCK_C"]))
        fill_kernel[grid](
            x,
            wide,
            self._arena,
            self._table[self._places[group]],
            self._runs,
            self._step_weights,
            x.stride(0),
            wide.stride(0),
            in_features,
            self._columns,
            rows,
            len(self._runs),
            self._step_weights.shape[1],
            used,
            COPY=wide.data_ptr() != x.data_ptr(),
            ALIGN=self._align,
            **_options(shape),
        )

    def _shape(self, rows: int) -> LaunchConfig:
        if self._align == 1 or self._arena.dtype == torch.float32:
            return FILL_PLAIN
        return FILL_SHORT if rows < SHORT_STEP else FILL


def _columns(factors: Factors) -> Columns:
    """Return the table columns of one group. factors: of that group."""
    width, row, parts = factors.a.shape[0], 0, []
    for b in factors.b:
        rank, out = b.shape
        fields = np.zeros((COLUMN_FIELDS, rank), dtype=np.int64)
        fields[2] = b.storage_offset() + np.arange(rank) * out - row
        fields[3], fields[4] = row, row + out
        parts.append(fields)
        row += out
    columns = np.concatenate(parts, axis=1)
    columns[1] = factors.a.storage_offset() + np.arange(factors.rank) * width
    return columns


def _runs(segments: Sequence[Segment], slots: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return the run of each row up to the last of these, and (runs, slots) weights. Run 0 has no adapter.

    Rows with the same segments are in one run.
    """
    bounds = sorted({bound for s in segments for bound in (s.start, s.end)})
    runs = np.zeros(round_up(bounds[-1] if bounds else 0, 4), dtype=np.int32)  # so that weights lie at 16 bytes
    weights = np.zeros((len(bounds) + 1, slots), dtype=np.float32)
    for run, (low, high) in enumerate(pairwise(bounds), 1):
        runs[low:high] = run
    for slot, weight, start, end in segments:
        first, last = (int(np.searchsorted(bounds, bound)) for bound in (start, end))
        weights[first + 1 : last + 1, slot] += weight
    return runs, weights


def _options(shape: LaunchConfig) -> dict[str, Any]:
    return {**shape.blocks, "num_warps": shape.warps, "num_stages": shape.stages}
