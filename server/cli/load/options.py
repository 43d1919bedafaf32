"""The flags of a load, their checks, and the trace that they stand for. A mistake is a CommandError with the flag."""

import argparse
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CommandError
from ..parser import checked
from ..values import finite
from . import trace
from .generator import DIALECTS
from .trace import Request
from .workload import POPULARITIES, WORKLOADS, Range, Workload, parse_range

NUM_REQUESTS = 64
# Flags that exclude each other. One that is given replaces a preset's other one.
EXCLUSIVE = (
    ("rate", "concurrency"),
    ("duration", "num_requests"),
    ("lengths", "prompt_tokens"),
    ("lengths", "output_tokens"),
)
# Flags that a trace is drawn with: none of them can be given for a trace from a file.
DRAWN_WITH = (
    *("workload", "models", "popularity", "alpha", "rate", "cv", "duration", "num_requests", "seed"),
    *("lengths", "prompt_tokens", "output_tokens"),
)
COUNTS = ("num_requests", "concurrency")
POSITIVE = ("rate", "duration", "alpha", "slo_ttft")
LEAST_CV, MOST_CV = 0.001, 1000  # what the shape of a Gamma distribution can be computed for, and drawn from
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Load:
    """A trace and how it is to be sent.

    concurrency: clients, where the trace has no arrivals. settings: all that it was made from, as JSON.
    """

    trace: list[Request]
    concurrency: int
    slo_ttft: float | None
    settings: dict[str, Any]


def add_arguments(parser: "argparse._ActionsContainer") -> None:
    """Add the flags of a load. All default to None, which tells a flag that was given from one that was not."""
    number = checked(finite)
    parser.add_argument("--workload", choices=WORKLOADS, help="a paper's settings, where no other flag says otherwise")
    parser.add_argument("--models", metavar="A,B{0..9}", help="model names; a range in braces is many")
    parser.add_argument("--popularity", choices=POPULARITIES, help="of the models (default: distinct, each in turn)")
    parser.add_argument("--alpha", type=number, help="exponent of zipf and power (default: 1)")
    parser.add_argument("--num-requests", type=int, metavar="N", help=f"(default: {NUM_REQUESTS})")
    parser.add_argument("--concurrency", type=int, metavar="N", help="closed loop: clients (default: 16)")
    parser.add_argument("--rate", type=number, metavar="R", help="open loop: requests that arrive in a second")
    parser.add_argument(
        "--cv", type=number, help="coefficient of variation of their gaps, which are Gamma (default: 1)"
    )
    parser.add_argument("--duration", type=number, metavar="S", help="seconds of arrivals, instead of --num-requests")
    parser.add_argument("--prompt-tokens", metavar="N|N-M", help="fixed, or uniform in a range (default: 128)")
    parser.add_argument("--output-tokens", metavar="N|N-M", help="fixed, or uniform in a range (default: 64)")
    parser.add_argument("--lengths", choices=("punica",), help="lognormal prompts, and outputs up to 2048 together")
    parser.add_argument("--seed", type=int, help="the same seed makes the same trace (default: 0)")
    parser.add_argument("--slo-ttft", type=number, metavar="S", help="report how many first tokens came in so long")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="send this trace, instead of drawing one")
    parser.add_argument("--save-trace", type=Path, metavar="FILE", help="write the trace, one request a line")


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how the server takes requests."""
    parser.add_argument(
        "--dialect", choices=DIALECTS, default="vllm", help="fields of a request (default: vllm, OpenAI's and more)"
    )
    parser.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="the server's name of a model of the trace"
    )


def load(arguments: argparse.Namespace) -> Load:
    """Return the load that the flags stand for, drawn or read from a file.

    Raises CommandError for a mistake in the flags or in the file.
    """
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    made = _from_file(given) if "trace" in given else _drawn(given)
    if "save_trace" in given:
        trace.save(made.trace, given["save_trace"])
    return made


def _from_file(given: Mapping[str, Any]) -> Load:
    for name in DRAWN_WITH:
        if name in given:
            raise CommandError(f"--{name.replace('_', '-')}: a trace from a file has been drawn already")
    check(given)
    try:
        requests = trace.load(given["trace"])
    except (OSError, ValueError) as error:
        raise CommandError(f"--trace: {given['trace']}: {error}") from None
    concurrency, slo = given.get("concurrency", Workload.concurrency), given.get("slo_ttft")
    if requests[0].arrival is not None and "concurrency" in given:
        raise CommandError("--concurrency: the trace has arrivals, and no clients that wait")
    settings = {"trace": str(given["trace"]), "slo_ttft": slo}
    if requests[0].arrival is None:
        settings["concurrency"] = concurrency
    return Load(requests, concurrency, slo, settings)


def _drawn(given: Mapping[str, Any]) -> Load:
    chosen = _with_preset(given)
    check(chosen)
    workload = _workload(chosen, given)
    slo = chosen.get("slo_ttft")
    settings = {"preset": given.get("workload"), **workload.settings(), "slo_ttft": slo}
    return Load(trace.draw(workload), workload.concurrency, slo, settings)


def _with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    preset = dict(WORKLOADS.get(given.get("workload", ""), {}))
    for pair in EXCLUSIVE:
        if given.keys() >= {*pair}:
            raise CommandError(f"--{pair[0]} and --{pair[1].replace('_', '-')} are two ways to say one thing")
        for one, other in (pair, pair[::-1]):
            if one in given:
                preset.pop(other, None)
    return {**preset, **given}


def _workload(chosen: Mapping[str, Any], given: Mapping[str, Any]) -> Workload:
    for name in ("cv", "duration"):
        if name in given and "rate" not in chosen:
            raise CommandError(f"--{name}: only an open loop has it, with --rate")
    popularity = chosen.get("popularity", Workload.popularity)
    if "alpha" in given and popularity not in ("zipf", "power"):
        raise CommandError("--alpha: only the popularities zipf and power have it")
    plain = {"alpha", "rate", "cv", "concurrency", "seed", "lengths"} & chosen.keys()
    more: dict[str, Any] = {name: chosen[name] for name in plain}
    more |= {name: _length(name, chosen[name]) for name in ("prompt_tokens", "output_tokens") if name in chosen}
    return Workload(
        models=tuple(expand_names(chosen.get("models", ""))) or _no_model(),
        num_requests=_num_requests(chosen),
        popularity=popularity,
        **more,
    )


def _no_model() -> tuple[str, ...]:
    raise CommandError("--models: no model is named")


def _num_requests(chosen: Mapping[str, Any]) -> int:
    if "duration" not in chosen or "rate" not in chosen:
        return int(chosen.get("num_requests", NUM_REQUESTS))
    if (count := int(chosen["rate"] * chosen["duration"])) < 1:
        raise CommandError("--duration: no request arrives in it")
    return count


def check(chosen: Mapping[str, Any]) -> None:
    """Check the numbers among the given flags. Raises CommandError for the first that is out of its range."""
    for name in COUNTS:
        if chosen.get(name, 1) < 1:
            raise _mistake(name, chosen[name], "1 or more")
    for name in POSITIVE:
        if not 0 < chosen.get(name, 1) < math.inf:
            raise _mistake(name, chosen[name], "more than 0")
    if (cv := chosen.get("cv", 1)) != 0 and not LEAST_CV <= cv <= MOST_CV:
        raise _mistake("cv", cv, f"0, or from {LEAST_CV} to {MOST_CV}")
    if chosen.get("seed", 0) < 0:
        raise _mistake("seed", chosen["seed"], "0 or more")


def _length(name: str, value: str | Range) -> Range:
    """Return a flag's range of tokens. value: the flag's text, or a preset's range."""
    try:
        return value if isinstance(value, Range) else parse_range(value)
    except ValueError as error:
        raise _mistake(name, value, str(error)) from None


def _mistake(name: str, value: object, wanted: str) -> CommandError:
    return CommandError(f"--{name.replace('_', '-')}: {value} is not {wanted}")


def expand_names(text: str) -> list[str]:
    """Return the names that `a,b{0..99}` stands for, in that order. `{08..10}` keeps leading zeros, as a shell does."""
    return [name for part in text.split(",") if part for name in _expand_braces(part)]


def _expand_braces(part: str) -> list[str]:
    match = _BRACES.search(part)
    if not match:
        return [part]
    first, last = match.groups()
    width = len(first) if first.startswith("0") else 0
    before, after = part[: match.start()], _expand_braces(part[match.end() :])
    return [f"{before}{n:0{width}}{rest}" for n in range(int(first), int(last) + 1) for rest in after]


def parse_renames(pairs: Iterable[str]) -> dict[str, str]:
    """Return the server's name of each model, from pairs `OLD=NEW` whose sides have as many names.

    Raises CommandError.
    """
    renames = dict[str, str]()
    for pair in pairs:
        old, new = (expand_names(side) for side in pair.partition("=")[::2])
        if not old or len(old) != len(new):
            raise CommandError(f"--rename: {pair!r} is not OLD=NEW with as many names on both sides")
        renames |= dict(zip(old, new, strict=True))
    return renames
