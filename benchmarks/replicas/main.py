"""Replicas on Ray, on one machine: do adapters stick, do changes hold, what does a kill cost, and the ingress.

    python -m benchmarks.replicas [MODEL] [--measure sticking,churn,loss,throughput] [--out FILE]

Without MODEL it is the demo's base, whose steps take a millisecond, so that all that is around them shows.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peftserve.server.cli.errors import CommandError
from peftserve.server.demo import DEMO_ADAPTERS, DEMO_MODEL

from ..machine import machine
from . import churn, loss, sticking, throughput
from .servers import started

ALL = ("sticking", "churn", "loss", "throughput")
NUMBERS = (2, 4)  # of replicas


def main(words: Sequence[str] | None = None) -> int:
    try:
        return run(parse_arguments(words))
    except CommandError as error:
        print(f"replicas: {error}", file=sys.stderr)
        return error.exit_code


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replicas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="for throughput (default: the demo's base)")
    parser.add_argument("--measure", default=",".join(ALL), metavar="A,B", help=f"some of {', '.join(ALL)}")
    parser.add_argument("--replicas", default=",".join(map(str, NUMBERS)), metavar="N,M", help="(default: 2,4)")
    parser.add_argument("--adapters", type=int, default=64, help="sticking: (default: 64)")
    parser.add_argument("--requests", type=int, default=1000, help="sticking: (default: 1000)")
    parser.add_argument("--operations", type=int, default=500, help="churn: uploads and deletions (default: 500)")
    parser.add_argument("--rounds", type=int, default=5, help="throughput: (default: 5)")
    parser.add_argument("--clients", type=int, default=16, help="at once (default: 16)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    return parser.parse_args(words)


def run(chosen: argparse.Namespace) -> int:
    measures = {"sticking": _sticking, "churn": _churn, "loss": _loss}
    asked = chosen.measure.split(",")
    if unknown := {*asked} - {*ALL}:
        raise CommandError(f"--measure: {', '.join(sorted(unknown))} is none of {', '.join(ALL)}")
    made: dict[str, Any] = {"machine": machine()}
    with TemporaryDirectory(prefix="peftserve-replicas-") as folder:
        for name in asked:
            if name == "throughput":
                made[name] = _throughput(chosen, Path(folder))
            else:
                made[name] = [measures[name](n, chosen, Path(folder)) for n in map(int, chosen.replicas.split(","))]
            print(json.dumps({name: made[name]}, indent=2), flush=True)
            if chosen.out:
                chosen.out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return 0


def _sticking(replicas: int, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with started(replicas, str(DEMO_MODEL), sticking.flags(chosen.adapters), folder / f"sticking-{replicas}") as server:
        sizes = {"adapters": chosen.adapters, "requests": chosen.requests, "clients": chosen.clients}
        return asyncio.run(sticking.measure(server, DEMO_ADAPTERS["snake"], **sizes))


def _churn(replicas: int, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    # Under other names than those of the demo, which the server has already.
    folders = {f"as-{name}": DEMO_ADAPTERS[name] for name in ("snake", "reverse", "title")}
    with started(replicas, None, (), folder / f"churn-{replicas}") as server:
        return asyncio.run(churn.measure(server, folders, chosen.operations))


def _loss(replicas: int, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with started(replicas, None, (), folder / f"loss-{replicas}") as server:
        return asyncio.run(loss.measure(server, 2.0))


def _throughput(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    with (
        started(0, chosen.model, (), folder / "bare") as bare,
        started(1, chosen.model, (), folder / "through") as through,
    ):
        models = [Path(chosen.model).name] if chosen.model else ["snake", "title", "sql", "reverse"]
        sizes = {"rounds": chosen.rounds, "requests": 8 * chosen.clients, "clients": chosen.clients}
        return asyncio.run(throughput.measure(bare, through, models, **sizes))
