"""Chooses the design of a step's launches: from a table of measurements on the device, else by the model.

`python -m benchmarks.kernels --tune` makes the tables: one JSON file a device, in `tuned/`. Nothing is measured while a
server runs, and choices are kept: the host asks whenever a step's segments change.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import log2
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...integers import cdiv
from ...private.torch_private import registers_of, shared_memory_of
from ..layout import Group
from .designs import Design, Expand, Shrink, candidates
from .model import MEMORY_BOUND_ROWS, Device, Share, expand_takes, seconds, shrink_takes

FOLDER = Path(__file__).with_name("tuned")
UNKNOWN_RANK = 16  # for launches that are captured before any adapter is known
USUAL_BANDWIDTH = 2e12  # bytes a second, of a GPU whose driver does not say how fast its memory is
MARGIN = 1.07  # half of what the model explains is explained as closely
REACHED = 0.89  # of a memory's bandwidth, by a plain read: 0.88 to 0.91 on H100 and H200
MOST_REGISTERS = 255
LARGE = 64


class Row(NamedTuple):
    """A row of a table: the fastest design for so many rows in all, rows of each adapter, and ranks of a site."""

    rows: int
    each: int
    rank: int
    width: int
    design: Design


class Tuning:
    """The choice of designs. groups: of the model. rows: of the device's table; none where nothing was measured.

    only: a design to take for all steps.
    """

    def __init__(
        self,
        device: Device,
        groups: Sequence[Group] = (),
        *,
        itemsize: int = 2,
        rows: Sequence[Row] = (),
        only: Design | None = None,
    ) -> None:
        self._device = device
        self._itemsize = itemsize
        self._groups: dict[int, list[Group]] = {}
        for group in dict.fromkeys(group for group in groups if not group.gather):
            self._groups.setdefault(group.in_features, []).append(group)
        self._rows = tuple(rows)
        self._only = only
        self._pool = [design for design in candidates() if fits(design, itemsize, device)]
        self._known: dict[tuple[int, int, int, int], Design] = {}

    def design(self, rows: int, segments: Sequence[int], rank: int, width: int) -> Design:
        """Return the design of a step.

        rows: of the step, or of a graph's capacity. segments: rows of each. rank: the largest of a site, on average
        over the group's sites; 0 if it is not known. width: input features.
        """
        each = _rounded(cdiv(sum(segments), max(len(segments), 1)))
        key = (_rounded(rows), each, _rounded(rank or UNKNOWN_RANK), width)
        if key not in self._known:
            self._known[key] = self._only or self._choose(*key)
        return self._known[key]

    def all_designs(self) -> list[Design]:
        """Return all designs that `design` may return, to be compiled before the first step."""
        if self._only:
            return [self._only]
        found = [row.design for row in self._rows] or self._pool
        return list(dict.fromkeys(replace(design, beside=beside) for design in found for beside in (False, True)))

    def _choose(self, rows: int, each: int, rank: int, width: int) -> Design:
        table = [row for row in self._rows if row.width == width] or self._rows
        if table:
            found = min(table, key=lambda row: _distance(row, rows, each, rank)).design
        else:
            found = self._usual(self.ranked(rows, each, rank, width))
        return replace(found, beside=rows <= MEMORY_BOUND_ROWS)

    def _usual(self, ranked: Sequence[tuple[float, Design]]) -> Design:
        """Return the first design of the list that is as fast as the best, within the model's accuracy."""
        fastest = ranked[0][0]
        return min((design for seconds, design in ranked if seconds <= MARGIN * fastest), key=self._pool.index)

    def ranked(self, rows: int, each: int, rank: int, width: int) -> list[tuple[float, Design]]:
        """Return the candidates by the model's seconds, the fastest first."""
        groups = self._groups.get(width) or [Group(width, (width,))]
        shares = [Share(rank, each, cdiv(rows, each))]
        found = []
        for design in self._suiting(width):
            total = sum(seconds(design, group, shares, self._device, itemsize=self._itemsize) for group in groups)
            found.append((total, design))
        return sorted(found, key=lambda pair: pair[0])

    def _suiting(self, width: int) -> Sequence[Design]:
        """Return the designs whose partial sums expand takes.

        Where there are none, return all: then shrink's parts become larger.
        """
        there = [d for d in self._pool if d.rows == 1 or cdiv(width, d.shrink.part) <= d.most_parts]
        return there or self._pool


def fits(design: Design, itemsize: int, device: Device) -> bool:
    """Return whether a design fits the device, by estimate: whether it spills registers, only compiling it tells."""
    if not device.large and max(design.rows, design.expand.ranks) >= LARGE:
        return False
    taken = (
        shrink_takes(design.shrink, design.rows, itemsize, device),
        expand_takes(design.expand, design.rows, itemsize, device),
    )
    return all(registers <= MOST_REGISTERS and shared <= device.shared for registers, shared in taken)


def choice_for(arena: torch.Tensor, groups: Sequence[Group], folder: Path = FOLDER) -> Tuning:
    """Make the choice for an arena's device, with its table if the arena has 16 bits."""
    device = device_of(arena.device)
    rows = load(torch.cuda.get_device_name(arena.device), folder) if arena.is_cuda else []
    return Tuning(device, groups, itemsize=arena.element_size(), rows=rows if arena.element_size() == 2 else [])


def device_of(device: torch.device) -> Device:
    """Describe a device for the model. A CPU, where triton interprets, is taken for an H100 without early launch."""
    if device.type != "cuda":
        return Device(132, 3e12, early=False)
    from ...private.triton_private import memory_bandwidth  # not on machines without a GPU, which need no triton

    p = torch.cuda.get_device_properties(device)
    modern = torch.version.hip is None and p.major >= 9
    return Device(
        p.multi_processor_count,
        REACHED * memory_bandwidth(device.index or 0) or USUAL_BANDWIDTH,
        registers=registers_of(device),
        shared=shared_memory_of(device),
        threads=p.max_threads_per_multi_processor,
        cache=p.L2_cache_size,
        warp_size=p.warp_size,
        early=modern,
        large=modern,
    )


def load(device_name: str, folder: Path = FOLDER) -> list[Row]:
    """Return the rows of a device's table, empty if there is none."""
    path = table_path(device_name, folder)
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [_row(**row) for row in rows]


def save(device_name: str, rows: Sequence[Row], measured: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write the table of a device. measured: how it was measured, for readers of the file."""
    path = table_path(device_name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [{**row._asdict(), "design": asdict(row.design)} for row in rows]
    lines = ",\n  ".join(json.dumps(row) for row in written)
    about = f'"device": {json.dumps(device_name)},\n "measured": {json.dumps(measured)}'
    path.write_text(f'{{\n {about},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
    return path


def table_path(device_name: str, folder: Path = FOLDER) -> Path:
    return folder / (re.sub(r"[^A-Za-z0-9]+", "_", device_name).strip("_") + ".json")


def _row(design: dict[str, Any], **key: int) -> Row:
    halves = {"shrink": Shrink(**design["shrink"]), "expand": Expand(**design["expand"])}
    return Row(**key, design=Design(**{**design, **halves}))


def _rounded(number: int) -> int:
    """Round up to a power of two."""
    return 1 << max(number - 1, 0).bit_length()


def _distance(row: Row, rows: int, each: int, rank: int) -> float:
    """Return how far a row of the table is from a step. Rows of an adapter count most: they decide the tiles."""
    return 2 * abs(log2(row.each / each)) + abs(log2(row.rows / rows)) + abs(log2(row.rank / rank))
