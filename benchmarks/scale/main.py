"""Where adapters should be in a large fleet: policies of placement, simulated.

    python -m benchmarks.scale [--replicas 1000] [--adapters 100000] [--requests N] [--rates 6,12] [--skews 0.9]
        [--traces steady,azure] [--policies NAMES] [--out FILE.json]

Every policy gets the same requests. A run is added to FILE as soon as it has ended, in the place of one of the same
settings; `--plot FOLDER` draws what FILE has. docs/scale.md says what comes of it.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from peftserve.server.deploy.affinity import DEFAULT_BOUND

from ..machine import machine
from ..tables import Table
from .costs import Costs, measured
from .fleet import Fleet, run
from .plot import plot
from .policies import POLICIES
from .replica import Shape
from .report import report
from .workload import TRACES, Traffic

WARM = 0.5  # of the requests, while memories fill
TABLE = Table(
    {"trace": "<8", "rate": "5g", "skew": "6g", "policy": "<16", "ttft p50": "10.0f", "p99": "9.0f"}
    | {"on device": "11.3f", "ms/token p99": "14.1f", "GB/1000": "9.2f", "took s": "8.0f"}
)
SHOWN = ("ttft_p50", "ttft_p99", "from_device", "per_token_p99", "gb_per_1000")


def simulate(name: str, kind: str, traffic: Traffic, replicas: int, costs: Costs) -> dict[str, Any]:
    """Return the settings and the figures of one run."""
    begin = time.process_time()
    fleet = Fleet(replicas, Shape(), costs, Random(traffic.seed))
    requests = run(fleet, TRACES[kind](traffic), POLICIES[name]())
    for replica in fleet.replicas:
        replica.check_integrity()
    settings = {"trace": kind, "policy": name, "replicas": replicas, "adapters": traffic.adapters}
    settings |= {"requests": traffic.requests, "rate": traffic.rate / replicas, "skew": traffic.skew}
    settings |= {"seed": traffic.seed, "bound": [DEFAULT_BOUND.excess, DEFAULT_BOUND.free]}
    took = round(time.process_time() - begin, 1)
    return {"settings": settings, "figures": report(fleet, requests, WARM), "took": took}


def add(path: Path, one: dict[str, Any]) -> None:
    """Put a run into a file, in the place of one of the same settings."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"commands": [], "runs": []}
    command = "python -m benchmarks.scale " + " ".join(sys.argv[1:])
    found["commands"] = list(dict.fromkeys([*found["commands"], command]))
    found["machine"] = machine()
    found["runs"] = [run for run in found["runs"] if run["settings"] != one["settings"]] + [one]
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(words)
    if args.plot:
        print(*plot(json.loads(args.out.read_text(encoding="utf-8"))["runs"], args.plot), sep="\n")
        return
    costs = measured()
    print(TABLE.heading())
    for kind in args.traces:
        for rate in args.rates:
            for skew in args.skews:
                traffic = Traffic(args.requests, args.adapters, rate * args.replicas, skew, args.seed)
                for name in args.policies:
                    one = simulate(name, kind, traffic, args.replicas, costs)
                    figures = [one["figures"][shown] for shown in SHOWN]
                    print(TABLE.line(kind, rate, skew, name, *figures, one["took"]), flush=True)
                    if args.out:
                        add(args.out, one)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=600_000)
    parser.add_argument("--rates", type=_numbers, default=[12.0], help="requests a second and replica")
    parser.add_argument("--skews", type=_numbers, default=[0.9])
    parser.add_argument("--traces", type=_among(TRACES), default=list(TRACES))
    parser.add_argument("--policies", type=_among(POLICIES), default=list(POLICIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw what --out has, and simulate nothing")
    return parser


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _among(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse
