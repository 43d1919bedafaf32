"""The kernel benchmark's run: every step measured, printed, written to JSON, and at the end drawn."""

import argparse
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import torch
from tqdm import tqdm

from ..machine import machine_of
from .axes import layers_for, scenarios, table
from .contender import Contender
from .options import UsageError, command, make_parser, out_folder
from .plot import plot
from .point import Point, free, measure
from .precompile import precompile
from .problem import SHAPES, Scenario, make_problem
from .report import closing, figures, line, write_json
from .roofline import Roofline, measure_roofline
from .roster import contenders_of

ROUNDS = {"cpu": 7, "cuda": 20}
COMPILING = 0.4  # of the time that is given, at most


def run(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    try:
        return run_with(parser.parse_args(arguments))
    except UsageError as error:
        parser.error(str(error))


def run_with(options: argparse.Namespace) -> int:
    """Run the benchmark; return 1 if ours was wrong or failed anywhere.

    Raises UsageError before anything is measured.
    """
    resolve(options)
    if options.tune:
        import_module(".tune", __package__).tune(options)
    start, seconds = time.monotonic(), 60 * (options.minutes or float("inf"))
    contenders = contenders_of(options)
    if options.jobs and options.device == "cuda":
        precompile(options, chosen_scenarios(options), start + COMPILING * seconds)
    roofline = measure_roofline(options.device, getattr(torch, options.dtype))
    points, stem = list[Point](), stem_of(options)
    about = {
        "machine": {**machine_of(options.device), **roofline._asdict()},
        "command": command(options),
        "settings": {"shape": options.shape, "dtype": options.dtype, "rounds": options.rounds},
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    print(_first_lines(options, roofline, contenders))
    for point in _measured(options, roofline, contenders, start + seconds):
        tqdm.write(line(point))
        points.append(point)
        write_json(stem.with_suffix(".json"), about, contenders, points)
    print(closing(points))
    _draw(points, stem, not options.no_plot)
    return int(any(point.ours is None for point in points))


def resolve(options: argparse.Namespace) -> None:
    """Fill in the options that depend on the machine."""
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    options.shape = options.shape or ("llama-8b" if options.device == "cuda" else "smollm-135m")
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    options.rounds = options.rounds or (3 if options.quick else ROUNDS[options.device])


def stem_of(options: argparse.Namespace) -> Path:
    """Return the path of the result files without their suffixes."""
    phase = "" if options.phase == "all" else f"_{options.phase}"
    return out_folder(options) / f"kernels_{options.device}_{options.shape}{phase}"


def chosen_scenarios(options: argparse.Namespace) -> list[Scenario]:
    phases = ("decode", "prefill") if options.phase == "all" else (options.phase,)
    return table(phases) if options.table else scenarios(options.device, phases, quick=options.quick)


def _measured(
    options: argparse.Namespace, roofline: Roofline, contenders: Sequence[Contender], end: float
) -> Iterator[Point]:
    device, dtype, shape = options.device, getattr(torch, options.dtype), SHAPES[options.shape]
    for scenario in tqdm(chosen_scenarios(options), unit="step", disable=None):
        if time.monotonic() > end:
            tqdm.write("no further step: out of time")
            return
        layers = options.layers or layers_for(scenario, shape, dtype, device)
        problem = make_problem(scenario, shape, layers=layers, dtype=dtype, device=device, join=device == "cuda")
        yield measure(problem, contenders, roofline, device, options.rounds)
        del problem
        free(device)


def _first_lines(options: argparse.Namespace, roofline: Roofline, contenders: Sequence[Contender]) -> str:
    about = machine_of(options.device)
    versions = f"torch {about['torch']}, triton {about.get('triton', 'none')}"
    setup = f"{options.shape}, {options.dtype}, {about['device']}, {versions}"
    what = f"medians of {options.rounds} rounds, in microseconds of a layer; (times ours)"
    return f"{setup}: {roofline}\n{what}\n{figures([contender.name for contender in contenders]).heading()}"


def _draw(points: Sequence[Point], stem: Path, wanted: bool) -> None:
    written = plot(points, stem) if wanted else []
    print("\n".join(f"wrote {path}" for path in (stem.with_suffix(".json"), *written)))
    if points and wanted and not written:
        print("no plot: matplotlib is not installed; pip install 'peftserve[bench]'")
