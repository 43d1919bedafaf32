"""Times the bypasses on this machine's CPU: our backend, a plain loop over the adapters, and PEFT's mixed batch.

    python -m benchmarks.bypass [--threads N] [--dtype float32 bfloat16] [--shape smollm-135m 2048x5632] [--quick]
                                [--out FILE.json]

The work is a step of all the linears of some layers: as many as fill the cache twice, and no more than the model has.
`benchmarks/kernels/cost.py` says what the floor is. The contestants take turns and medians are reported, so that a busy
neighbour slows all of them alike. PEFT has the base's outputs given to it, as we have, and is timed at decode only.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from peftserve.kernels.bypass.layout import Group
from peftserve.kernels.bypass.torch.backend import TorchBypass

from ..kernels.axes import label, layers_for
from ..kernels.contender import Run
from ..kernels.ours import Ours, attach_all
from ..kernels.problem import SHAPES, BypassProblem, Scenario, Shape, make_problem
from ..kernels.roofline import Roofline, least_work, measure_roofline, shares_of
from ..machine import machine_of
from ..tables import Table
from .peft_linears import Peft

MODELS = {
    "smollm-135m": SHAPES["smollm-135m"],
    "2048x5632": Shape(
        4, (Group(2048, (2048, 512, 512)), Group(2048, (2048,)), Group(2048, (5632, 5632)), Group(5632, (2048,)))
    ),
}
MIXED = (8, 16, 32, 64, 128)
COUNTS = (1, 2, 4, 8, 16, 32, 64)
LEAST_ROUNDS, ROUNDS = 3, 7
FIGURES = Table(
    {"dtype": "<9", "shape": "<12", "layers": "7", "phase": "8", "tokens": "7", "adapters": "9", "ranks": "7"}
    | {"floor": "9.2f", "ours": "9.2f", "begin": "8.2f", "loop": "10.2f", "loop/ours": "11.2f"}
    | {"peft": "9.2f", "peft/ours": "11.2f"}
)
SHORTEST, LONGEST = 1.5, 12.0  # seconds of one point's rounds


@dataclass(frozen=True)
class Result:
    """The milliseconds of a step's bypasses.

    begin: planning, once per change of the batch. peft: None where it is not timed.
    """

    dtype: str
    shape: str
    layers: int
    phase: str
    tokens: int
    adapters: int
    ranks: str
    floor: float
    ours: float
    begin: float
    loop: float
    peft: float | None


def scenarios(*, quick: bool) -> Iterator[Scenario]:
    """Yield the steps: all counts with mixed ranks; small and large ranks at a few counts; and prefills."""
    if quick:
        yield from (Scenario("decode", 16, _ranks(MIXED, 8)), Scenario("prefill", 512, _ranks(MIXED, 8)))
        return
    for tokens in COUNTS:
        yield from (Scenario("decode", tokens, _ranks(MIXED, n)) for n in COUNTS[:-1] if n <= tokens)
    for rank in (8, 64, 128):
        yield from (Scenario("decode", t, _ranks((rank,), n)) for t, n in ((1, 1), (8, 8), (16, 1), (16, 8), (32, 32)))
    for tokens in (128, 512, 2048):
        yield from (Scenario("prefill", tokens, _ranks(MIXED, n)) for n in (1, 8, 32))


def _ranks(ranks: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tuple(ranks[i % len(ranks)] for i in range(count))


class PlainLoop:
    """The plain loop, as it is commonly written: at each linear, for each adapter, two products on its rows."""

    name = "loop"
    version = ""

    def prepare(self, problem: BypassProblem) -> Run:
        def run() -> None:
            for index, x, outputs in problem.calls():
                for position, y in enumerate(outputs):
                    for slot, _, start, end in problem.scenario.segments:
                        adapter = problem.adapters[slot]
                        a = adapter.a[index][position * adapter.rank :][: adapter.rank]
                        y[start:end] += x[start:end] @ a.t() @ adapter.b[index][position]

        return run


def measure(scenario: Scenario, shape: str, dtype: torch.dtype, roofline: Roofline) -> Result:
    model = MODELS[shape]
    layers = layers_for(scenario, model, dtype, "cpu")
    problem = make_problem(scenario, model, layers=layers, dtype=dtype, device="cpu")
    peft: dict[str, Run] = {"peft": Peft().prepare(problem)} if scenario.phase == "decode" else {}
    times = medians(
        {"begin": planning(problem), "ours": Ours().prepare(problem), "loop": PlainLoop().prepare(problem), **peft}
    )
    floor = roofline.seconds(least_work(problem.groups, shares_of(scenario), dtype))
    figures = {name: round(seconds * 1e3, 3) for name, seconds in {"floor": floor, "peft": 0.0, **times}.items()}
    setting = (str(dtype).removeprefix("torch."), shape, layers, scenario.phase, scenario.tokens, len(scenario.ranks))
    return Result(*setting, label(scenario.ranks), **{**figures, "peft": figures["peft"] or None})


def fastest(device: str, dtype: torch.dtype) -> Roofline:
    """Measure the roofline, with products in fp32 where the dtype's own are slower."""
    own, wide = measure_roofline(device, dtype), measure_roofline(device, torch.float32)
    return Roofline(max(own.bandwidth, wide.bandwidth), max(own.peak, wide.peak))


def planning(problem: BypassProblem) -> Run:
    """Return a run that plans the step anew, as after a change of the batch."""
    backend = TorchBypass(problem.arena, problem.groups)
    attach_all(backend, problem)

    def run() -> None:
        backend.begin([], [])
        backend.begin(problem.scenario.segments, [])

    return run


def medians(runs: Mapping[str, Run]) -> dict[str, float]:
    """Return the seconds of one call of each, by the median of rounds in which they take turns."""
    for run in runs.values():
        run()
    start, rounds = time.perf_counter(), [{name: seconds(run) for name, run in runs.items()}]
    while more(len(rounds), time.perf_counter() - start):
        rounds.append({name: seconds(run) for name, run in runs.items()})
    return {name: statistics.median(times[name] for times in rounds) for name in runs}


def more(rounds: int, passed: float) -> bool:
    """Return whether another round is due: long steps have fewer rounds, and short ones more."""
    return rounds < LEAST_ROUNDS or (passed < LONGEST and rounds < ROUNDS) or passed < SHORTEST


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def line(r: Result) -> str:
    setting = (r.dtype, r.shape, r.layers, r.phase, r.tokens, r.adapters, r.ranks)
    times = (r.floor, r.ours, r.begin, r.loop, r.loop / r.ours)
    return FIGURES.line(*setting, *times, *((r.peft, r.peft / r.ours) if r.peft else ()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["bfloat16"])
    parser.add_argument("--shape", nargs="+", choices=MODELS, default=["smollm-135m"])
    parser.add_argument("--quick", action="store_true", help="one step of each phase")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON, such as to benchmarks/results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads; milliseconds of a step, medians\n{FIGURES.heading()}")
    results: list[Result] = []
    with torch.inference_mode():
        for dtype in (getattr(torch, name) for name in args.dtype):
            roofline = fastest("cpu", dtype)
            for shape in args.shape:
                for scenario in scenarios(quick=args.quick):
                    results.append(measure(scenario, shape, dtype, roofline))
                    print(line(results[-1]), flush=True)
    if args.out:
        setup = machine_of("cpu")
        args.out.write_text(json.dumps({**setup, "results": [asdict(r) for r in results]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
