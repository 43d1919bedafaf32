"""Times the bypasses of two checkouts on this machine's CPU: an older one, and this one.

    python -m benchmarks.bypass.pair CHECKOUT [--threads 1] [--clock cpu|wall] [--dtype float32 bfloat16]
                                    [--shape smollm-135m 2048x5632] [--rounds N] [--out FILE.json]

The steps are those of `python -m benchmarks.bypass`. Each checkout has a process of its own, and they take turns:
ratios are medians of those within a round. On a machine that others use too, one thread by its own clock says most and
is the default: its time does not run while it waits for a core.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import exp, log
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ..checkouts import ROOT, Subject, link_package, subject
from ..tables import Table

MODULE, OLDER_MODULE = "benchmarks.bypass.pair", "benchmarks.bypass_pair"
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
FIGURES = Table(
    {"dtype": "<10", "shape": "<13", "phase": "<9", "tokens": "6", "adapters": "9", "ranks": "8"}
    | {"before": "10.2f", "after": "10.2f", "before/after": "14.2f", "plan, before": "14.2f", "plan, after": "13.2f"}
)


@dataclass(frozen=True)
class Pair:
    """Milliseconds, medians. speedup: of a step, before over after. plan: of what a change of the batch costs."""

    dtype: str
    shape: str
    phase: str
    tokens: int
    adapters: int
    ranks: str
    before: float
    after: float
    speedup: float
    plan_before: float
    plan_after: float

    def __str__(self) -> str:
        return FIGURES.line(*vars(self).values())


@contextmanager
def started(checkout: Path, threads: int, clock: str) -> Iterator[Subject]:
    """Start the backend of a checkout in a process that runs the checkout's own `serve`, and yield it."""
    checkout = checkout.resolve()
    with tempfile.TemporaryDirectory() as folder:
        link_package(checkout, Path(folder))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((folder, str(checkout)))}
        module = MODULE if (checkout / MODULE.replace(".", "/")).with_suffix(".py").exists() else OLDER_MODULE
        command = [sys.executable, "-m", module, "--serve", str(threads), clock]
        with subject(command, environment, Path(folder)) as backend:
            yield backend


def serve(threads: int, clock: str) -> None:
    """Answer lines of JSON: a step to prepare, or null for the seconds of planning and of running the last one once."""
    import torch

    from ..kernels.axes import layers_for
    from ..kernels.ours import Ours
    from ..kernels.problem import Scenario, make_problem
    from .main import MODELS, planning

    torch.set_num_threads(threads)
    now = CLOCKS[clock]
    with torch.inference_mode():
        for line in sys.stdin:
            if (question := json.loads(line)) is not None:
                model, dtype = MODELS[question["shape"]], getattr(torch, question["dtype"])
                scenario = Scenario(question["phase"], question["tokens"], tuple(question["ranks"]))
                layers = layers_for(scenario, model, dtype, "cpu")
                problem = make_problem(scenario, model, layers=layers, dtype=dtype, device="cpu")
                runs = [planning(problem), Ours().prepare(problem)]
            times = [now()]
            for run in runs:
                run()
                times.append(now())
            print(json.dumps([end - start for start, end in pairwise(times)]), flush=True)


def compare(subjects: Sequence[Subject], problem: dict[str, Any], rounds: int) -> Pair:
    from ..kernels.axes import label

    for each in subjects:
        each.ask(problem)
    seen: list[list[list[float]]] = []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        answers = {which: subjects[which].ask(None) for which in order}
        seen.append([answers[0], answers[1]])
    plan, run = ([[1e3 * times[which] for times in pair] for pair in seen] for which in range(2))
    figures = [median(pair[0] for pair in run), median(pair[1] for pair in run), median(old / new for old, new in run)]
    figures += [median(pair[which] for pair in plan) for which in range(2)]
    ranks = problem["ranks"]
    names = [problem[name] for name in ("dtype", "shape", "phase", "tokens")]
    return Pair(*names, len(ranks), label(ranks), *(round(figure, 3) for figure in figures))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--shape", nargs="+", default=["smollm-135m"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


def main() -> None:
    from ..machine import machine
    from .main import scenarios

    arguments = parse_arguments()
    print(f"milliseconds of a step, {arguments.threads} threads, {arguments.clock} clock\n{FIGURES.heading()}")
    pairs: list[Pair] = []
    with ExitStack() as stack:
        checkouts = (arguments.checkout, ROOT)
        subjects = [stack.enter_context(started(c, arguments.threads, arguments.clock)) for c in checkouts]
        for dtype in arguments.dtype:
            for shape in arguments.shape:
                for s in scenarios(quick=False):
                    problem = {"shape": shape, "dtype": dtype, "phase": s.phase, "tokens": s.tokens, "ranks": s.ranks}
                    pairs.append(compare(subjects, problem, arguments.rounds))
                    print(pairs[-1], flush=True)
    speedups = [pair.speedup for pair in pairs]
    print(f"least {min(speedups):.2f}, geometric mean {exp(fmean(map(log, speedups))):.2f}, of {len(pairs)}")
    if arguments.out:
        about = {"command": shlex.join(["python", *sys.argv]), "machine": machine()}
        report = {**about, "pairs": [asdict(pair) for pair in pairs]}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]), sys.argv[3])
    else:
        main()
