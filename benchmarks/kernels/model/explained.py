"""The model's time of each measured point. Knows how the experiment's own kernels differ from the product's."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from peftserve.kernels.bypass.layout import Group
from peftserve.kernels.bypass.triton import model
from peftserve.kernels.bypass.triton.designs import Design
from peftserve.kernels.bypass.triton.model import FITTED, NO_ROOM, Constants, Device, Launch, Room
from peftserve.kernels.integers import cdiv

from ..problem import SHAPES
from .measured import Half, design_of, device_of, halves, shares


class ByRanks(NamedTuple):
    """The constants of the experiment's first expand, seconds: a round of ranks, an element, 256 partial sums."""

    round: float
    element: float
    sums: float


BY_RANKS = ByRanks(0.454e-6, 20.4e-9, 31e-9)


class ModelledPoint(NamedTuple):
    """Microseconds of a layer, measured and modelled. own: whether the product has such a design."""

    name: str
    measured: float
    modelled: float
    own: bool = True

    @property
    def ratio(self) -> float:
        return self.modelled / self.measured


def layer() -> Sequence[Group]:
    return SHAPES["llama-8b"].layer


def half_us(half: Half, device: Device, constants: Constants = FITTED, by_ranks: ByRanks = BY_RANKS) -> float:
    """Return the microseconds of one of the two launches, over a layer's groups."""
    there = shares(half.tokens, half.adapters, half.ranks)
    make = model.shrink if half.half == "shrink" else model.expand
    launches = [make(half.design, group, there, device, constants=constants) for group in layer()]
    if half.half == "expand_by_ranks":
        launches = [
            _by_ranks(half.design, group, there, launch, device, constants, by_ranks)
            for group, launch in zip(layer(), launches, strict=True)
        ]
    return sum(model.launch_seconds(launch, device, constants) for launch in launches) * 1e6


def _by_ranks(
    design: Design,
    group: Group,
    there: Sequence[model.Share],
    launch: Launch,
    device: Device,
    constants: Constants,
    own: ByRanks,
) -> Launch:
    """Return the launch of the experiment's first expand, in which B and partial sums of h take shared memory.

    There are as many partial sums as the next power of two.
    """
    half, rows = design.expand, design.rows
    parts = 1 << max(1, (cdiv(group.in_features, design.shrink.part) - 1).bit_length())
    threads = 32 * half.warps
    elements = rows * half.columns / threads
    shared = parts * rows * half.ranks * 4 + half.ranks * half.columns * 2
    registers = min(255, int(40 + 2 * elements))
    resident = max(1, min(2048 // threads, 65536 // (registers * threads), device.shared // (shared + 1024)))
    tiles = [share.adapters * cdiv(share.rows, rows) for share in there]
    rounds = sum(n * cdiv(share.rank, half.ranks) for n, share in zip(tiles, there, strict=True)) / sum(tiles)
    each = own.round + own.element * elements + own.sums * parts * rows * half.ranks / 256
    return launch._replace(chain=3 * constants.latency + rounds * each, resident=resident)


def step_us(
    design: Design,
    there: Sequence[model.Share],
    device: Device,
    constants: Constants = FITTED,
    *,
    room: Room = NO_ROOM,
    by_ranks: bool = False,
    early: Sequence[bool] = (False, False),
) -> float:
    """Return the microseconds of a layer's eight launches.

    early: whether shrink, and whether expand, is launched early. by_ranks: with the experiment's first expand.
    """
    total = 0.0
    for group in layer():
        first = model.shrink(design, group, there, device, room=room, constants=constants)
        second = model.expand(design, group, there, device, room=room, constants=constants)
        if by_ranks and design.rows > 1:
            second = _by_ranks(design, group, there, second, device, constants, BY_RANKS)
        for launch, begins in zip((first, second), early, strict=True):
            total += model.launch_seconds(launch, device, constants, early=begins)
    return total * 1e6


def steps(table: dict[str, Any], constants: Constants = FITTED) -> Iterator[ModelledPoint]:
    """Yield the experiment's 15 steps: plain, early, walking, and with blocks for as many adapters as rows."""
    device = device_of(table)
    for step in table["steps"]:
        there = shares(step["tokens"], step["adapters"], step["ranks"])
        name = f"{step['tokens']} x {step['adapters']}, {step['ranks']}"
        own = step["design"]["rows"] != 4  # those spill registers
        design, padded = design_of(step["design"]), Room(step["tokens"], 3 * max(share.rank for share in there))
        for kind, early, room in (("simple", False, NO_ROOM), ("early", True, NO_ROOM), ("padded", True, padded)):
            flags = (early, early)
            found = step_us(design, there, device, constants, room=room, by_ranks=True, early=flags)
            yield ModelledPoint(f"{name}: {kind}", step[kind], found, own)
        if "walk" in step:
            flags = (step["walk_design"]["early"],) * 2
            found = step_us(design_of(step["walk_design"]), there, device, constants, early=flags)
            yield ModelledPoint(f"{name}: walk", step["walk"], found)


def beside(table: dict[str, Any], constants: Constants = FITTED) -> Iterator[ModelledPoint]:
    """Yield what is added to the base's products. cuBLAS's do not let the next launch begin early."""
    device = device_of(table)
    designs = {(s["tokens"], s["adapters"], s["ranks"]): s["design"] for s in table["steps"]}
    for step in table["beside"]:
        key = step["tokens"], step["adapters"], step["ranks"]
        there, design, name = shares(*key), design_of(designs[key]), f"{key[0]} x {key[1]} beside the base"
        for kind, flags in (("behind", (False, False)), ("early", (False, True))):
            found = step_us(design, there, device, constants, by_ranks=True, early=flags)
            yield ModelledPoint(f"{name}: {kind}", step[kind], found)
        whole = step_us(design, there, device, constants, by_ranks=True)
        yield ModelledPoint(f"{name}: second stream", step["beside"], whole - _hidden(design, there, device, constants))


def _hidden(design: Design, there: Sequence[model.Share], device: Device, constants: Constants) -> float:
    """Return the microseconds that a second stream hides, as `model.seconds` has it."""
    saved = 0.0
    for group in layer():
        behind = model.seconds(design, group, there, device, constants=constants)
        ahead = Design(design.rows, design.shrink, design.expand, beside=True)
        saved += behind - model.seconds(ahead, group, there, device, constants=constants)
    return saved * 1e6


def half_points(table: dict[str, Any]) -> list[ModelledPoint]:
    """Return the points of single launches, with the product's constants."""
    device = device_of(table)
    return [
        ModelledPoint(f"{p.tokens} x {p.adapters}, {p.ranks}: {p.half} {_short(p)}", p.us, half_us(p, device))
        for p in halves(table)
    ]


def _short(point: Half) -> str:
    half = point.design.shrink if point.half == "shrink" else point.design.expand
    return f"{point.design.rows} rows, " + " ".join(map(str, vars(half).values()))
