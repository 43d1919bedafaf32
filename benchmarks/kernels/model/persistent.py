"""The model's terms applied to the kernel before the two launches, the only one measured on both cards.

One launch a group of two programs a multiprocessor, which walk blocks of shrink and then of expand in turn: as many
chains follow each other as a program has blocks. Two constants are its own; all others are those of the two launches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from peftserve.kernels.bypass.layout import Group
from peftserve.kernels.bypass.triton.model import FITTED, Device, Share
from peftserve.kernels.integers import cdiv

from .explained import ModelledPoint, layer
from .measured import EXPERIMENT, PEERS, device_of, read, shares

PROGRAMS, THREADS = 2, 256  # of a multiprocessor, of a program
SHRINK_ROUNDS, EXPAND_ROUNDS = 3, 4  # of loads that depend on each other: header, list, table, and then h for expand
A_PART, SUMS = 120e-9, 60e-9  # seconds: of a part of h, which are loaded in turn, and of 256 of its sums
FEW_ROWS = 64


@dataclass(frozen=True)
class Blocks:
    """Sizes of the kernel's blocks.

    rows: of a tile. ranks: of a block. features, columns: at a time. parts: of h, at most.

    stages: of the software pipeline.
    """

    rows: int
    ranks: int
    features: int
    columns: int
    parts: int
    stages: int


FEW, MANY = Blocks(16, 16, 256, 256, 16, 2), Blocks(64, 32, 64, 64, 2, 3)


def persistent_us(there: Sequence[Share], device: Device) -> float:
    """Return the microseconds of a layer."""
    few = sum(share.rows * share.adapters for share in there) <= FEW_ROWS
    return sum(_seconds(FEW if few else MANY, group, there, device) for group in layer()) * 1e6


def _seconds(blocks: Blocks, group: Group, there: Sequence[Share], device: Device) -> float:
    tiles = [share.adapters * cdiv(share.rows, blocks.rows) for share in there]
    ranks = [len(group.out_features) * share.rank for share in there]
    units = sum(count * cdiv(rank, blocks.ranks) for count, rank in zip(tiles, ranks, strict=True))
    rounds = sum(n * cdiv(share.rank, blocks.ranks) for n, share in zip(tiles, there, strict=True)) / sum(tiles)
    programs = PROGRAMS * device.multiprocessors
    parts = _parts(blocks, units, programs, group.in_features)
    step, columns = _tile_steps(blocks) if any(share.rows > 1 for share in there) else (0.0, 0.0)
    steps = cdiv(cdiv(group.in_features, blocks.features), parts)
    shrink = SHRINK_ROUNDS * FITTED.latency + steps * (step + FITTED.latency / (blocks.stages - 1))
    expand = EXPAND_ROUNDS * FITTED.latency + rounds * (FITTED.latency + columns)
    across = sum(cdiv(width, blocks.columns) for width in group.out_features)
    walked = ceil(units * parts / programs) * shrink + ceil(sum(tiles) * across / programs) * expand
    return FITTED.launch + walked + _moving(group, there, tiles, device)


def _parts(blocks: Blocks, units: int, programs: int, width: int) -> int:
    """Return into how many parts the features were cut, so that all programs ended soonest."""
    most = cdiv(width, blocks.features)
    choices = sorted({cdiv(most, each) for each in range(1, most + 1)})

    def cost(parts: int) -> float:
        return cdiv(units * parts, programs) * cdiv(most, parts) + parts / blocks.parts

    return min((parts for parts in choices if parts <= blocks.parts), key=cost, default=1)


def _tile_steps(blocks: Blocks) -> tuple[float, float]:
    """Return the seconds on tensor cores of a step of shrink, and of a block of expand."""
    loaded = blocks.rows * blocks.features / THREADS * FITTED.element
    stored = 2 * blocks.rows * blocks.columns / THREADS * FITTED.element
    sums = blocks.parts * A_PART + blocks.rows * blocks.ranks / 256 * SUMS
    return blocks.features * FITTED.product + FITTED.step + loaded, FITTED.step + stored + sums


def _moving(group: Group, there: Sequence[Share], tiles: Sequence[int], device: Device) -> float:
    sites, width, out = len(group.out_features), group.in_features, sum(group.out_features)
    memory = cached = outputs = 0
    for share, count in zip(there, tiles, strict=True):
        factors = share.rank * (sites * width + out) * 2
        memory += share.adapters * factors
        cached += (count - share.adapters) * factors
        outputs += 2 * share.adapters * share.rows * out * 2
    at_once = device.multiprocessors
    return memory / device.bandwidth + cached / (at_once * FITTED.cached) + outputs / (at_once * FITTED.outputs)


def points() -> Iterator[ModelledPoint]:
    """Yield the points of both cards."""
    for name in (EXPERIMENT, PEERS):
        table = read(name)
        for step in (*table["steps"], *table.get("prefill", ())):
            key = step["tokens"], step["adapters"], step["ranks"]
            title = f"{key[0]} x {key[1]}, {key[2]}: persistent, {table['card']}"
            yield ModelledPoint(title, step["old"], persistent_us(shares(*key), device_of(table)))
