"""The choice of the Triton kernels' designs on the GPU at hand, by timing candidates on steps of every kind.

For each kind of step (a `Row` of the table) all candidates that the model expects to take at most `FACTOR` times as
long as its best are timed in turns, and the least median wins. Designs that spill registers, fail or are wrong are left
out. Kernels are compiled beforehand in several processes. Kinds that no time is left for keep the model's choice, as
without a table.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from peftserve.kernels.bypass.triton.backend import TritonBypass
from peftserve.kernels.bypass.triton.choice import FOLDER, Row, Tuning, device_of, save
from peftserve.kernels.bypass.triton.designs import Design
from peftserve.kernels.device.occupancy import resources

from ..machine import machine_of
from .axes import layers_for
from .check import Reference
from .contender import Run
from .options import UsageError
from .ours import add_all, attach_all
from .point import MICROSECONDS, free
from .problem import SHAPES, BypassProblem, Scenario, Shape, make_problem
from .timing import captured, medians

KINDS = (
    *((64, 1), (64, 4), (256, 4), (16, 1), (64, 64), (1, 1), (256, 256), (16, 16), (256, 16)),
    *((512, 64), (4096, 512), (4096, 4096), (16, 4), (2048, 256), (8192, 8192)),
)
"""Rows in all, and of each adapter; those that matter most first."""
RANKS = (16, 64)
DECODE_ROWS = 256
FACTOR = 2.0  # the model is a third off at most
ROUNDS = 5
SECONDS = 60.0


class NoGpu(UsageError):
    """There is nothing to tune on a CPU."""


def tune(options: argparse.Namespace, folder: Path = FOLDER) -> Path:
    """Write the device's table, which later measurements use, and print each row when it is chosen. Raises NoGpu.

    It takes a minute, or `options.minutes`.
    """
    if options.device != "cuda":
        raise NoGpu("--tune: the designs are those of a GPU's kernels, and torch sees no GPU")
    dtype, shape = getattr(torch, options.dtype), SHAPES[options.shape]
    end = time.monotonic() + (60 * options.minutes if options.minutes else SECONDS)
    model = Tuning(device_of(torch.device("cuda", 0)), shape.layer, itemsize=dtype.itemsize)
    if options.jobs:
        _compile_all(shape, dtype, model.all_designs(), options.jobs)
    rows, measured = list[Row](), 0
    for kind in tqdm(list(_kinds(shape, model)), unit="kind of step", disable=None):
        chosen = _choose(kind, model, shape, dtype) if time.monotonic() < end else None
        measured += chosen is not None
        rows.append(chosen or kind)
    about = {**machine_of(options.device), "shape": options.shape, "dtype": options.dtype, "rows": measured}
    path = save(torch.cuda.get_device_name(), rows, about, folder)
    tqdm.write(f"wrote {path.name}: {measured} of {len(rows)} rows measured, the rest by the model")
    return path


def _compile_all(shape: Shape, dtype: torch.dtype, designs: Sequence[Design], jobs: int) -> None:
    """Compile in several processes: triton keeps on disk what it compiled, for the measuring process."""
    parts = [Shape(1, (group,)) for group in dict.fromkeys(shape.layer)]
    work = [(part, dtype, design) for design in designs for part in parts if not design.beside]
    with get_context("spawn").Pool(jobs) as pool:
        pool.starmap(_compile, work, chunksize=1)


def _compile(shape: Shape, dtype: torch.dtype, design: Design) -> None:
    """Compile a design. A failure here is ignored: it repeats where the design is measured, and leaves it out."""
    problem = make_problem(Scenario("decode", 1, RANKS[:1]), shape, layers=1, dtype=dtype, device="cuda")
    with suppress(Exception):
        _backend(problem, design).compile(design)


def _kinds(shape: Shape, model: Tuning) -> Iterator[Row]:
    """Yield all rows of the table, with the model's choice."""
    widths = sorted({group.in_features for group in shape.layer})
    for (rows, each), rank, width in product(KINDS, RANKS, widths):
        yield Row(rows, each, rank, width, model.design(rows, [each] * (rows // each), rank, width))


def _choose(kind: Row, model: Tuning, shape: Shape, dtype: torch.dtype) -> Row | None:
    """Return the row with the fastest design, None if no candidate ran."""
    ranked = model.ranked(kind.rows, kind.each, kind.rank, kind.width)
    likely = [design for seconds, design in ranked if seconds <= FACTOR * ranked[0][0]]
    part = Shape(1, tuple(group for group in shape.layer if group.in_features == kind.width))
    phase = "decode" if kind.rows <= DECODE_ROWS else "prefill"
    scenario = Scenario(phase, kind.rows, (kind.rank,) * (kind.rows // kind.each))
    layers = layers_for(scenario, part, dtype, "cuda")
    problem = make_problem(scenario, part, layers=layers, dtype=dtype, device="cuda", join=True)
    times = {design: seconds / layers for design, seconds in _times(problem, likely).items()}
    del problem
    free("cuda")
    if not times:
        return None
    best = min(times, key=times.__getitem__)
    tqdm.write(_line(kind, times, {design: seconds for seconds, design in ranked}))
    return kind._replace(design=Design(best.rows, best.shrink, best.expand, best.early, kind.design.beside))


def _line(kind: Row, times: dict[Design, float], modelled: dict[Design, float]) -> str:
    """Return the kind and its candidates with measured (modelled) microseconds of a layer's groups, fastest first."""
    head = f"{kind.rows} rows, {kind.each} each, rank {kind.rank}, width {kind.width}:"
    found = [
        f"{seconds * MICROSECONDS:.1f} ({modelled[design] * MICROSECONDS:.1f}) {short(design)}"
        for design, seconds in sorted(times.items(), key=lambda pair: pair[1])
    ]
    return " ".join([head, "; ".join(found)])


def short(design: Design) -> str:
    """Return a design as a text: rows of a tile, then the numbers of shrink and of expand."""
    halves = ("/".join(map(str, vars(half).values())) for half in (design.shrink, design.expand))
    return " ".join([str(design.rows), *halves])


def _times(problem: BypassProblem, choices: Sequence[Design]) -> dict[Design, float]:
    reference = Reference(problem)
    runs = {str(i): run for i, each in enumerate(choices) if (run := _ready(problem, each, reference)) is not None}
    return {choices[int(name)]: seconds for name, seconds in medians(runs, "cuda", ROUNDS).items()}


def _ready(problem: BypassProblem, design: Design, reference: Reference) -> Run | None:
    """Return a captured run of a design; None if it does not compile, spills registers, or is wrong here."""
    try:
        backend = _backend(problem, design)
        if any(resources(kernel).spilled for kernel in backend.compile(design)):
            return None
        attach_all(backend, problem)
        run = captured(partial(add_all, backend, problem), "cuda")
        return run if reference.error(run) <= reference.tolerance else None
    except Exception:
        return None


def _backend(problem: BypassProblem, design: Design) -> TritonBypass:
    only = Tuning(device_of(problem.arena.device), only=design)
    slots, rows = len(problem.adapters), problem.scenario.tokens
    return TritonBypass(problem.arena, problem.groups, max_slots=slots, max_rows=rows, choice=only)
