"""The measurement of one step: every contender is prepared, checked, and only then timed in turns with the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .axes import label
from .check import Reference
from .contender import Contender, Run
from .problem import BypassProblem, Scenario
from .roofline import Roofline, least_work, shares_of
from .timing import captured, medians

MICROSECONDS = 1e6


@dataclass(frozen=True)
class Outcome:
    """A contender's result.

    us: microseconds of a layer; None if it was not timed, and `note` says why. error: as checked.
    """

    us: float | None
    error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Point:
    """The results of one step. floor: microseconds of a layer. outcomes: by contender."""

    phase: str
    tokens: int
    adapters: int
    ranks: str
    layers: int
    floor: float
    outcomes: dict[str, Outcome]

    @property
    def ours(self) -> float | None:
        return self.outcomes["ours"].us if "ours" in self.outcomes else None

    @property
    def best_peer(self) -> tuple[str, float] | None:
        timed = [(o.us, name) for name, o in self.outcomes.items() if o.us is not None and name != "ours"]
        return (min(timed)[1], min(timed)[0]) if timed else None


@dataclass(frozen=True)
class Ready:
    """A contender that has been prepared and checked."""

    run: Run
    error: float


def measure(
    problem: BypassProblem, contenders: Sequence[Contender], roofline: Roofline, device: str, rounds: int
) -> Point:
    reference = Reference(problem)
    outcomes, ready = dict[str, Outcome](), dict[str, Ready]()
    for contender in contenders:
        match make_ready(contender, problem, reference, device):
            case Ready() as found:
                ready[contender.name] = found
            case Outcome() as refused:
                outcomes[contender.name] = refused
    reference.restore()
    times = medians({name: found.run for name, found in ready.items()}, device, rounds)
    for name, seconds in times.items():
        outcomes[name] = Outcome(round(seconds / problem.layers * MICROSECONDS, 3), ready[name].error)
    floor = roofline.seconds(least_work(problem.groups, shares_of(problem.scenario), problem.arena.dtype))
    return _point(problem, floor, {c.name: outcomes[c.name] for c in contenders})


def make_ready(contender: Contender, problem: BypassProblem, reference: Reference, device: str) -> Ready | Outcome:
    """Prepare and check a contender. Another project's code may fail in any way: that is its outcome."""
    try:
        run = contender.prepare(problem)
        if run is None:
            return Outcome(None, note="no such step")
        timed = captured(run, device)
        error = reference.error(timed)
    except Exception as failure:
        return Outcome(None, note=f"failed: {type(failure).__name__}: {failure}"[:300])
    if error > reference.tolerance:
        return Outcome(None, error, f"wrong: relative error {error:.1e}")
    return Ready(timed, error)


def _point(problem: BypassProblem, floor: float, outcomes: dict[str, Outcome]) -> Point:
    scenario: Scenario = problem.scenario
    ranks = scenario.ranks
    per_layer = round(floor / problem.layers * MICROSECONDS, 3)
    return Point(
        scenario.phase, scenario.tokens, len(ranks), label(ranks), problem.layers, floor=per_layer, outcomes=outcomes
    )


def free(device: str) -> None:
    """Free the memory that one step's contenders kept, before the next step."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
