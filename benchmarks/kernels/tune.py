"""Chooses the Triton kernel's blocks on the GPU at hand, by timing all that may be good on steps of every kind.

For each kind of step (see `tuning.Row`) the candidate with the least median becomes a row of the device's table. Those
that spill registers, or whose programs would not all be on the device at once, are left out.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from peftserve.kernels.bypass.triton.backend import TritonBypass
from peftserve.kernels.bypass.triton.tuning import FOLDER, Blocks, Phase, Row, Tuning, defaults, save
from peftserve.kernels.device.occupancy import Resources, multiprocessor, programs_at_once, resources

from .axes import layers_for
from .check import Reference
from .contender import Run
from .options import UsageError
from .ours import add_all, attach_all
from .point import free
from .report import machine_of
from .steps import SHAPES, Scenario, Shape, Step, make_step
from .timing import captured, medians

TOKENS = {Phase.DECODE: (1, 16, 64, 256), Phase.PREFILL: (2048, 8192)}
RANKS = (16, 64)
ADAPTERS = (1, 16)
ROUNDS = 5
UNLIMITED = 1 << 20  # what a table's last rows say of ranks, widths and the tokens of a prefill


class NoGpu(UsageError):
    """There is nothing to tune on a CPU."""


def tune(options: argparse.Namespace, folder: Path = FOLDER) -> Path | None:
    """Writes the device's table, which the measurements behind it then use. Raises NoGpu.

    Each row is printed as soon as it is chosen. After `minutes` the rest is not: then there is no table, since one
    with some of its rows would say of other steps what holds for these.
    """
    if options.device != "cuda":
        raise NoGpu("--tune: the blocks are those of a GPU's kernel, and torch sees no GPU")
    dtype, shape = getattr(torch, options.dtype), SHAPES[options.shape]
    kinds, end = list(_kinds(shape)), time.monotonic() + 60 * (options.minutes or float("inf"))
    if options.jobs:
        _compile_all(shape, dtype, options.jobs)
    rows = list[Row]()
    for kind in tqdm(kinds, unit="kind of step", disable=None):
        if time.monotonic() > end:
            tqdm.write(f"no table: {len(rows)} of {len(kinds)} rows were chosen in time")
            return None
        rows.append(_choose(kind, shape, dtype))
        tqdm.write(json.dumps(asdict(rows[-1])))
    about = {**machine_of(options.device), "shape": options.shape, "dtype": options.dtype}
    path = save(torch.cuda.get_device_name(), rows, about, folder)
    tqdm.write(f"wrote {path.name}: {len(rows)} rows")
    return path


def _compile_all(shape: Shape, dtype: torch.dtype, jobs: int) -> None:
    """In so many processes: triton keeps on disk what it compiled, where the measuring process then finds it."""
    work = [
        (part, dtype, phase, candidates(phase)[start::jobs])
        for phase in Phase
        for part in {group.in_features: Shape(1, (group,)) for group in shape.layer}.values()
        for start in range(jobs)
    ]
    with get_context("spawn").Pool(jobs) as pool:
        pool.starmap(_compile, work, chunksize=1)


def _compile(shape: Shape, dtype: torch.dtype, phase: Phase, choices: Sequence[Blocks]) -> None:
    """What fails here fails again where it is measured, and is left out there."""
    step = make_step(Scenario(phase, 1, RANKS[:1]), shape, layers=1, dtype=dtype, device="cuda")
    for blocks in choices:
        with suppress(Exception):
            _backend(step, blocks).compile(blocks)


def candidates(phase: Phase) -> list[Blocks]:
    few_rows, many_rows, _ = defaults()
    if phase is Phase.DECODE:
        grid = product((128, 256, 512), (128, 256), (4, 8), (1, 2, 4))
        thin = [
            replace(few_rows, block_k=k, block_n=n, warps=warps, programs=programs, registers=registers)
            for k, n, warps, programs in grid
            if (registers := _registers(warps, programs)) >= 64
        ]
        return [*thin, many_rows]
    grid = product((32, 64, 128), (64, 128), (64, 128), (1, 2))
    return [
        replace(many_rows, block_m=m, block_k=k, block_n=n, programs=programs, registers=_registers(8, programs))
        for m, k, n, programs in grid
    ]


def _registers(warps: int, programs: int) -> int:
    """What each thread may take where so many programs share a multiprocessor's 65,536."""
    return min(255, 65536 // (32 * warps * programs) // 8 * 8)


def _kinds(shape: Shape) -> Iterator[Row]:
    """All rows of the table, with blocks still to be chosen."""
    widths = sorted({group.in_features for group in shape.layer})
    for phase, tokens in TOKENS.items():
        for count, rank, width in product(tokens, RANKS, widths):
            yield Row(
                phase,
                UNLIMITED if phase is Phase.PREFILL and count == tokens[-1] else count,
                UNLIMITED if rank == RANKS[-1] else rank,
                UNLIMITED if width == widths[-1] else width,
                defaults().few_rows,
            )


def _choose(kind: Row, shape: Shape, dtype: torch.dtype) -> Row:
    """By the sum of the medians over one adapter for all tokens and one for each of several."""
    widest = max(group.in_features for group in shape.layer)
    part = Shape(1, tuple(g for g in shape.layer if g.in_features == min(kind.width, widest)))
    rank = RANKS[-1] if kind.rank == UNLIMITED else kind.rank
    tokens = TOKENS[kind.phase][-1] if kind.tokens == UNLIMITED else kind.tokens
    totals: dict[Blocks, float] = {}
    for adapters in ADAPTERS:
        if adapters <= tokens:
            scenario = Scenario(kind.phase, tokens, (rank,) * adapters)
            layers = layers_for(scenario, part, dtype, "cuda")
            step = make_step(scenario, part, layers=layers, dtype=dtype, device="cuda")
            times = _times(step, candidates(kind.phase))
            totals = {blocks: totals.get(blocks, 0.0) + seconds for blocks, seconds in times.items()}
            del step
            free("cuda")
    return replace(kind, blocks=min(totals, key=totals.__getitem__))


def _times(step: Step, choices: Sequence[Blocks]) -> dict[Blocks, float]:
    reference = Reference(step)
    runs = {str(i): run for i, blocks in enumerate(choices) if (run := _ready(step, blocks, reference)) is not None}
    return {choices[int(name)]: seconds for name, seconds in medians(runs, "cuda", ROUNDS).items()}


def _ready(step: Step, blocks: Blocks, reference: Reference) -> Run | None:
    """None for blocks that do not compile, do not fit, or are wrong here: they are not chosen."""
    try:
        backend = _backend(step, blocks)
        if not all(_fits(resources(kernel), blocks) for kernel in backend.compile(blocks)):
            return None
        attach_all(backend, step)
        run = captured(partial(add_all, backend, step), "cuda")
        return run if reference.error(run) <= reference.tolerance else None
    except Exception:
        return None


def _backend(step: Step, blocks: Blocks) -> TritonBypass:
    only = Tuning(otherwise=defaults()._replace(few_rows=blocks, many_rows=blocks))
    slots, rows = len(step.adapters), step.scenario.tokens
    return TritonBypass(step.arena, step.groups, max_slots=slots, max_rows=rows, table=only)


def _fits(taken: Resources, blocks: Blocks) -> bool:
    there = multiprocessor(torch.device("cuda", 0))
    return not taken.spilled and programs_at_once(taken, there) >= blocks.programs
