"""The flags that say what is asked of a server, and the trace that they mean."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CommandError
from . import names, trace
from .checks import check, lengths_of
from .dialect import DIALECTS
from .popularity import POPULARITIES
from .trace import Request
from .workload import WORKLOADS, Workload

NUM_REQUESTS = 64
# Two ways to say one thing: both in a command are a mistake, and one of them takes the place of a preset's other.
RIVALS = (
    ("rate", "concurrency"),
    ("duration", "num_requests"),
    ("lengths", "prompt_tokens"),
    ("lengths", "output_tokens"),
)
# What a trace from a file has been drawn with.
DRAWN_WITH = (
    *("workload", "models", "popularity", "alpha", "rate", "cv", "duration", "num_requests", "seed"),
    *("lengths", "prompt_tokens", "output_tokens"),
)


@dataclass(frozen=True)
class Load:
    """concurrency: clients, where the trace has no arrivals. settings: all that it was made from, as JSON."""

    trace: list[Request]
    concurrency: int
    slo_ttft: float | None
    settings: dict[str, Any]


def add_arguments(parser: "argparse._ActionsContainer") -> None:
    """All of None without the flag: what was said is told from what was not."""
    parser.add_argument("--workload", choices=WORKLOADS, help="a paper's settings, where no other flag says otherwise")
    parser.add_argument("--models", metavar="A,B{0..9}", help="model names; a range in braces is many")
    parser.add_argument("--popularity", choices=POPULARITIES, help="of the models (default: distinct, each in turn)")
    parser.add_argument("--alpha", type=float, help="exponent of zipf and power (default: 1)")
    parser.add_argument("--num-requests", type=int, metavar="N", help=f"(default: {NUM_REQUESTS})")
    parser.add_argument("--concurrency", type=int, metavar="N", help="closed loop: clients (default: 16)")
    parser.add_argument("--rate", type=float, metavar="R", help="open loop: requests that arrive in a second")
    parser.add_argument("--cv", type=float, help="coefficient of variation of their gaps, which are Gamma (default: 1)")
    parser.add_argument("--duration", type=float, metavar="S", help="seconds of arrivals, instead of --num-requests")
    parser.add_argument("--prompt-tokens", metavar="N|N-M", help="fixed, or uniform in a range (default: 128)")
    parser.add_argument("--output-tokens", metavar="N|N-M", help="fixed, or uniform in a range (default: 64)")
    parser.add_argument("--lengths", choices=("punica",), help="lognormal prompts, and outputs up to 2048 together")
    parser.add_argument("--seed", type=int, help="the same seed makes the same trace (default: 0)")
    parser.add_argument("--slo-ttft", type=float, metavar="S", help="report how many first tokens came in so long")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="send this trace, instead of drawing one")
    parser.add_argument("--save-trace", type=Path, metavar="FILE", help="write the trace, one request a line")


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dialect", choices=DIALECTS, default="vllm", help="fields of a request (default: vllm, OpenAI's and more)"
    )
    parser.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="the server's name of a model of the trace"
    )


def load(arguments: argparse.Namespace) -> Load:
    """Raises CommandError for a mistake in the flags or in the file."""
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
    for pair in RIVALS:
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
    more |= {name: lengths_of(name, chosen[name]) for name in ("prompt_tokens", "output_tokens") if name in chosen}
    return Workload(
        models=tuple(names.expand(chosen.get("models", ""))) or _no_model(),
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
