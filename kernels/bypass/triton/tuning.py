"""How the Triton kernel is launched: block sizes, warps and programs, from a table of what was measured or by formula.

`python -m benchmarks.kernels --tune` makes the tables: one JSON file a device, in `tuned/`. What they hold is read once
and never measured while a server runs.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ...integers import cdiv

FOLDER = Path(__file__).with_name("tuned")


class Phase(StrEnum):
    DECODE = "decode"
    PREFILL = "prefill"


@dataclass(frozen=True)
class Blocks:
    """How one launch is compiled and how wide it runs.

    block_m: most rows of a tile, 16 or more. block_r: ranks at a time. block_k, block_n: input and output features at a
    time. max_split: most parts that the input's features are summed in. gemv: tiles of one row without tensor cores.
    programs: on each multiprocessor at once; what they need of registers and shared memory together must be there.
    registers: most that a thread may use, on CUDA.
    """

    block_m: int
    block_r: int
    block_k: int
    block_n: int
    max_split: int
    gemv: bool = True
    warps: int = 8
    stages: int = 2
    programs: int = 2
    registers: int = 128


@lru_cache(maxsize=4096)
def best_split(blocks: Blocks, units: int, num_programs: int, in_features: int) -> int:
    """In how many parts `units` of shrink sum their features, so that all programs end soonest.

    Counted in blocks of features that the busiest program takes, and one more for what it costs to read the most parts.
    """
    num_blocks = cdiv(in_features, blocks.block_k)
    choices = sorted({cdiv(num_blocks, each) for each in range(1, num_blocks + 1)})

    def cost(split: int) -> float:
        return cdiv(units * split, num_programs) * cdiv(num_blocks, split) + split / blocks.max_split

    return min((split for split in choices if split <= blocks.max_split), key=cost, default=1)


@dataclass(frozen=True)
class Row:
    """Of a table: the blocks for steps of a phase up to so many tokens, ranks (of a site) and input features."""

    phase: Phase
    tokens: int
    rank: int
    width: int
    blocks: Blocks

    def covers(self, phase: Phase, tokens: int, rank: int, width: int) -> bool:
        return phase is self.phase and tokens <= self.tokens and rank <= self.rank and width <= self.width


class Defaults(NamedTuple):
    """For whatever no table covers. few_rows: steps of up to 64 rows. invariant: for the batch-invariant mode."""

    few_rows: Blocks
    many_rows: Blocks
    invariant: Blocks


def defaults(itemsize: int = 2, capability: int = 9, warp_size: int = 32) -> Defaults:
    """By the bytes of an element, and the major compute capability: 9 and more multiply tiles of 64 rows at once.

    The most of each that compiles without spilling registers.
    """
    few_rows = Blocks(block_m=16, block_r=16, block_k=256, block_n=256, max_split=16)
    many_rows = Blocks(block_m=64, block_r=32, block_k=64, block_n=64, max_split=2, stages=3)
    if capability < 9:
        few_rows = replace(few_rows, block_n=128)
        many_rows = replace(many_rows, block_m=32, block_r=16, block_k=128, stages=2)
    if itemsize == 4:  # for checks, not for speed
        few_rows = replace(few_rows, block_k=128)
    made = Defaults(few_rows, many_rows, replace(few_rows, gemv=False))
    if itemsize == 4 or warp_size == 64:
        return Defaults(*(replace(blocks, programs=1, registers=255) for blocks in made))
    return made


FEW, MOST_DECODE_TOKENS = 64, 256


def phase_of(tokens: int) -> Phase:
    return Phase.DECODE if tokens <= MOST_DECODE_TOKENS else Phase.PREFILL


class Tuning:
    """Chooses blocks for one device. rows: of its table; none where nothing was measured."""

    def __init__(self, rows: Sequence[Row] = (), otherwise: Defaults | None = None) -> None:
        self._defaults = otherwise or defaults()
        self._rows = sorted(rows, key=lambda row: (row.tokens, row.rank, row.width))

    def blocks(self, tokens: int, rank: int, width: int) -> Blocks:
        """tokens: rows of the step. rank: the largest, of a site of the group on average. width: its input features."""
        phase = phase_of(tokens)
        for row in self._rows:
            if row.covers(phase, tokens, rank, width):
                return row.blocks
        return self._defaults.few_rows if tokens <= FEW else self._defaults.many_rows

    @property
    def invariant(self) -> Blocks:
        return self._defaults.invariant

    def all_blocks(self) -> list[Blocks]:
        return list(dict.fromkeys([*(row.blocks for row in self._rows), *self._defaults[:2]]))


def load(device_name: str, otherwise: Defaults, folder: Path = FOLDER) -> Tuning:
    """The device's table, if there is one."""
    path = table_path(device_name, folder)
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return Tuning([_row(row) for row in rows], otherwise)


def save(device_name: str, rows: Sequence[Row], measured: dict[str, Any], folder: Path = FOLDER) -> Path:
    """measured: what it was measured with, for whoever reads the file."""
    path = table_path(device_name, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"device": device_name, "measured": measured, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return path


def table_path(device_name: str, folder: Path = FOLDER) -> Path:
    return folder / (re.sub(r"[^A-Za-z0-9]+", "_", device_name).strip("_") + ".json")


def _row(row: dict[str, Any]) -> Row:
    return Row(Phase(row["phase"]), row["tokens"], row["rank"], row["width"], Blocks(**row["blocks"]))
