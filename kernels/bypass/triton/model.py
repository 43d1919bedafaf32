"""Predicts how long a group's two launches take on a GPU, by a formula of a few constants fitted to some 400 points.

    launch = begun + chain · waves + memory / bandwidth + cached / cached bandwidth + outputs / output bandwidth

chain: what a block waits for in turn, which is rounds of loads that depend on each other, and the steps of its loop.
waves: blocks over how many there are at once, 1 at least: so much of all chains cannot overlap (Little's law, counted
in blocks). memory: bytes of factors, once. cached: all other reads and writes but outputs, which are factors again for
each further tile, inputs for each block, and partial sums of h. `benchmarks/kernels/model/fit.py` fits the constants
and shows how far each point is off. What matters here is which of two designs is faster, not the last digit.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ...integers import cdiv
from ..layout import Group
from .designs import Design, Expand, Shrink


class Device(NamedTuple):
    """What the model knows of a GPU.

    bandwidth: bytes a second that a plain read of its memory reaches. Of a multiprocessor: registers (32 bits), shared
    memory (bytes), threads. cache: bytes of the second level. early: whether launches may begin before the one ahead
    has ended. large: whether blocks of 64 rows or of 64 ranks keep their sums in registers.
    """

    multiprocessors: int
    bandwidth: float
    registers: int = 65536
    shared: int = 227 << 10
    threads: int = 2048
    cache: int = 50 << 20
    warp_size: int = 32
    early: bool = True
    large: bool = True


class Constants(NamedTuple):
    """The fitted constants: seconds, but for the two bandwidths, which are bytes a second of one multiprocessor.

    launch: from a kernel's end to the next one's first load; nothing where that is launched early. latency: of a load
    that misses, and of the instructions that wait for its result. step: of a loop, without its products. product: along
    one feature, since sums of one tile wait for each other. element: that a thread works on, in a step. idle: of a
    block that leaves behind its first load.
    """

    launch: float
    latency: float
    step: float
    product: float
    element: float
    idle: float
    cached: float
    outputs: float


class Share(NamedTuple):
    """A number of adapters of one rank (of a site), with the same number of rows each."""

    rank: int
    rows: int
    adapters: int = 1


class Room(NamedTuple):
    """The work that launches have blocks for, if more than the step has: tiles, and stacked ranks of each."""

    tiles: int = 0
    ranks: int = 0


class Launch(NamedTuple):
    """The blocks and bytes of one launch.

    blocks: that work. idle: that leave at once. resident: at once on a multiprocessor. chain: seconds. The others:
    bytes.
    """

    blocks: int
    idle: int
    resident: int
    chain: float
    memory: int
    cached: int
    outputs: int = 0


FITTED = Constants(
    launch=1.38e-6,
    latency=0.583e-6,
    step=0.047e-6,
    product=0.866e-9,
    element=1.44e-9,
    idle=0.55e-6,
    cached=123e9,
    outputs=48.9e9,
)
NO_ROOM = Room()
MOST_BLOCKS = 32  # that a multiprocessor has at once
H_BYTES = 4
MEMORY_BOUND_ROWS = 128  # to which the base's product waits for memory, and leaves room beside it


def seconds(
    design: Design,
    group: Group,
    shares: Sequence[Share],
    device: Device,
    *,
    itemsize: int = 2,
    room: Room = NO_ROOM,
    constants: Constants = FITTED,
) -> float:
    """Return the seconds of both launches.

    Where shrink runs beside the base's product, return the seconds that both add to it: a second stream hides all of
    shrink but its bytes, as long as the product itself waits for memory.
    """
    first = shrink(design, group, shares, device, itemsize=itemsize, room=room, constants=constants)
    second = expand(design, group, shares, device, itemsize=itemsize, room=room, constants=constants)
    early = design.early and device.early
    behind = launch_seconds(second, device, constants, early=early and not design.beside)
    if design.beside and sum(share.rows * share.adapters for share in shares) <= MEMORY_BOUND_ROWS:
        return behind + first.memory / device.bandwidth
    return behind + launch_seconds(first, device, constants, early=early and not design.beside)


def launch_seconds(launch: Launch, device: Device, constants: Constants = FITTED, *, early: bool = False) -> float:
    """Return the seconds of one launch.

    early: blocks begin before the kernel ahead has ended, as far as there is room for them beside its own.
    """
    at_once = device.multiprocessors * launch.resident
    waves = launch.blocks / at_once
    begun = constants.launch * (min(1.0, waves) if early else 1.0)
    idle = launch.idle / at_once * constants.idle
    moved = launch.memory / device.bandwidth + launch.cached / (device.multiprocessors * constants.cached)
    outputs = launch.outputs / (device.multiprocessors * constants.outputs)
    return begun + launch.chain * max(1.0, waves) + idle + moved + outputs


def shrink(
    design: Design,
    group: Group,
    shares: Sequence[Share],
    device: Device,
    *,
    itemsize: int = 2,
    room: Room = NO_ROOM,
    constants: Constants = FITTED,
) -> Launch:
    """Describe shrink: a block for each unit (some ranks of an adapter, for a tile) and part of the features."""
    half, sites, width = design.shrink, len(group.out_features), group.in_features
    parts = cdiv(width, half.part)
    units = tiles = memory = cached = rows = 0
    for share in shares:
        rows += share.adapters * share.rows
        ranks, mine = sites * share.rank, share.adapters * cdiv(share.rows, design.rows)
        units += mine * cdiv(ranks, half.ranks)
        tiles += mine
        factors = ranks * width * itemsize
        memory += share.adapters * factors
        inputs = cdiv(ranks, half.ranks) * share.rows * width * itemsize
        sums = share.rows * ranks * parts * H_BYTES
        cached += (mine - share.adapters) * factors + share.adapters * (inputs + sums)
    memory += _beyond_cache(rows * width * itemsize, device)
    idle = max(0, max(room.tiles, tiles) * cdiv(room.ranks, half.ranks) - units)
    chain = constants.latency + _shrink_chain(half, design.rows, min(half.part, width), constants)
    resident = _resident(half.warps, *shrink_takes(half, design.rows, itemsize, device), device)
    return Launch(units * parts, idle * parts, resident, chain, memory, cached)


def _shrink_chain(half: Shrink, rows: int, part: int, constants: Constants) -> float:
    """Return the seconds of a block's chain behind the load of its record."""
    steps = cdiv(part, half.step)
    if rows == 1:
        return steps * constants.latency
    elements = rows * half.step / (32 * half.warps)
    step = half.step * constants.product + constants.step + elements * constants.element
    if half.stages == 1:
        return steps * (constants.latency + step)
    return constants.latency + steps * max(step, constants.latency / (half.stages - 1))


def expand(
    design: Design,
    group: Group,
    shares: Sequence[Share],
    device: Device,
    *,
    itemsize: int = 2,
    room: Room = NO_ROOM,
    constants: Constants = FITTED,
) -> Launch:
    """Describe expand: a block for each tile and run of columns of a site."""
    half, width = design.expand, sum(group.out_features)
    parts = cdiv(group.in_features, design.shrink.part)
    across = sum(cdiv(out, half.columns * half.walked) for out in group.out_features)
    tiles = memory = cached = outputs = rounds = 0
    for share in shares:
        mine = share.adapters * cdiv(share.rows, design.rows)
        tiles += mine
        rounds += mine * cdiv(share.rank, half.ranks)
        factors = share.rank * width * itemsize
        memory += share.adapters * factors
        cached += (mine - share.adapters) * factors
        cached += share.adapters * across * share.rows * share.rank * parts * H_BYTES
        outputs += 2 * share.adapters * share.rows * width * itemsize
    chain = constants.latency + _expand_chain(half, design.rows, rounds / max(tiles, 1), constants)
    resident = _resident(half.warps, *expand_takes(half, design.rows, itemsize, device), device)
    spilled = 2 * _beyond_cache(outputs // 2, device)
    idle = max(0, room.tiles - tiles) * across
    return Launch(tiles * across, idle, resident, chain, memory + spilled, cached, outputs - spilled)


def _expand_chain(half: Expand, rows: int, rounds: float, constants: Constants) -> float:
    """Return the seconds of a block's chain behind the load of its record: h, and then B.

    rounds: mean blocks of ranks.
    """
    if rows == 1:
        return (1 + rounds) * constants.latency
    elements = rows * half.columns / (32 * half.warps)
    step = constants.step + elements * constants.element
    behind = max(step, constants.latency / max(1, half.stages - 1))
    return 2 * constants.latency + step + (half.walked * rounds - 1) * behind


def shrink_takes(half: Shrink, rows: int, itemsize: int, device: Device) -> tuple[int, int]:
    """Estimate the registers of a thread and the bytes of shared memory of a block."""
    threads = half.warps * device.warp_size
    if rows == 1:
        return 24 + half.ranks * half.step * itemsize // (4 * threads), 1024
    buffers = max(1, half.stages - 1)
    return 48 + rows * half.ranks // threads, buffers * (rows + half.ranks) * half.step * itemsize


def expand_takes(half: Expand, rows: int, itemsize: int, device: Device) -> tuple[int, int]:
    """Estimate the same as `shrink_takes`."""
    threads = half.warps * device.warp_size
    factor = half.ranks * half.columns
    if rows == 1:
        return 32 + factor * itemsize // (2 * threads), 1024
    registers = 24 + 2 * rows * half.columns // threads + factor * itemsize // (2 * threads)
    streamed = (half.stages - 1) * (half.ranks + rows) * half.columns * itemsize
    return registers, max(streamed, factor * itemsize) + 4 * rows * half.ranks * itemsize


def _beyond_cache(num_bytes: int, device: Device) -> int:
    """Return the bytes of an input or output that come from memory: 0 if the product ahead left it in the cache."""
    return num_bytes if num_bytes > device.cache else 0


def _resident(warps: int, registers: int, shared: int, device: Device) -> int:
    threads = warps * device.warp_size
    by_registers = device.registers // (min(registers, 255) * threads)
    return max(1, min(MOST_BLOCKS, device.threads // threads, by_registers, device.shared // (shared + 1024)))
