"""A server at several times its capacity: what probes, refusals and admitted requests wait for.

    python -m benchmarks.serving.saturated [--times 5] [--seconds 30] [--queue-timeout 2] [--out FILE.jsonl]

The demo's server. Its capacity is what clients that ask again as soon as they are answered get in all; then requests
come at `--times` that rate, whatever becomes of those before. Probes ask /health, /metrics and, for the machine's own
noise, an echo server that does nothing else, in turns, from a process of their own: idle, and under load.
"""

import argparse
import asyncio
import contextlib
import http.client
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..machine import machine
from ..records import append
from ..swap.own_server import started
from ..tables import Table
from .arrivals import Ended, arrive, repeat
from .echo import echo

PROBES = ("echo", "/health", "/metrics")
PAUSE = 0.01  # seconds between two probes
PLACES = {"max-running": 8, "max-queue": 16}


def main() -> int:
    arguments = parse_arguments()
    flags = [
        "--queue-timeout",
        str(arguments.queue_timeout),
        "--api-workers",
        arguments.workers,
        "--log-level",
        "error",
    ]
    with contextlib.ExitStack() as stack:
        folder, echoing = stack.enter_context(tempfile.TemporaryDirectory()), stack.enter_context(echo())
        server = stack.enter_context(started(None, flags, PLACES, Path(folder)))
        port = int(server.url.rpartition(":")[2])
        capacity = in_process(repeat, port, 2 * PLACES["max-running"], arguments.seconds / 3)
        idle = probe(port, echoing, arguments.seconds)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rate = arguments.times * capacity
            load = pool.apply_async(_run, (arrive, port, rate, arguments.seconds + 2))
            time.sleep(2)  # until the queue is full
            loaded = probe(port, echoing, arguments.seconds)
            ended: list[Ended] = load.get()
    report = {"capacity": capacity, "rate": rate, "queue_timeout": arguments.queue_timeout}
    report |= {"idle": quantiles(idle), "loaded": quantiles(loaded), "requests": of_requests(ended)}
    print(readable(report))
    append(arguments.out, part="saturated", command=" ".join(sys.argv[1:]), machine=machine(), **report)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=5.0, help="what comes, over what could be answered")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each of the two times")
    parser.add_argument("--queue-timeout", type=float, default=2.0)
    parser.add_argument("--workers", default="1", help="API processes")
    parser.add_argument("--out", type=Path, help="also append the figures, as a line of JSON")
    return parser.parse_args()


def _run(work: Any, *arguments: Any) -> Any:
    return asyncio.run(work(*arguments))


def in_process(work: Any, *arguments: Any) -> Any:
    """Return what a coroutine function returns, run in a process of its own: its work delays no probe."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (work, *arguments))


def probe(port: int, echoing: int, seconds: float) -> dict[str, list[float]]:
    """Ask each in turns, again and again. Returns their waits in milliseconds."""
    waits: dict[str, list[float]] = {name: [] for name in PROBES}
    with contextlib.ExitStack() as stack:
        connections = {name: stack.enter_context(_connection(echoing if name == "echo" else port)) for name in PROBES}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, connection in connections.items():
                begun = time.perf_counter()
                connection.request("GET", "/" if name == "echo" else name)
                connection.getresponse().read()
                waits[name].append((time.perf_counter() - begun) * 1e3)
                time.sleep(PAUSE)
    return waits


@contextlib.contextmanager
def _connection(port: int) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60.0)) as connection:
        yield connection


def quantile(waits: Sequence[float], share: float) -> float:
    """Return the least wait that is not exceeded by a share of them; 0 for none."""
    return sorted(waits)[min(int(len(waits) * share), len(waits) - 1)] if waits else 0.0


def quantiles(waits: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"count": len(some), **{f"p{share:g}": round(quantile(some, share / 100), 2) for share in (50, 90, 99)}}
        for name, some in waits.items()
    }


def of_requests(ended: Sequence[Ended]) -> dict[str, Any]:
    """Return the numbers of requests by status, and the waits of those refused, timed out and answered."""
    waits: dict[str, list[float]] = {"refused": [], "waited too long": [], "first token": []}
    for one in ended:
        kind = "first token" if one.status == 200 else "waited too long" if one.code == "queue_timeout" else "refused"
        waits[kind].append(one.wait * 1e3)
    statuses = Counter(f"{one.status} {one.code}".strip() for one in ended)
    return {"statuses": dict(statuses), **quantiles(waits)}


def readable(report: dict[str, Any]) -> str:
    """Return the figures as text."""
    columns = ("idle p50", "idle p99", "load p50", "load p99", "load/idle p99", "p99 over echo's")
    table = Table({"wait, ms": "<12", **dict.fromkeys(columns, "16.2f")})
    rows, noise = [table.heading()], report["loaded"]["echo"]["p99"]
    for name in PROBES:
        idle, loaded = report["idle"][name], report["loaded"][name]
        waits = (idle["p50"], idle["p99"], loaded["p50"], loaded["p99"])
        rows.append(table.line(name, *waits, loaded["p99"] / idle["p99"], loaded["p99"] / noise))
    requests = report["requests"]
    lines = [f"{name}: {some}" for name, some in requests.items()]
    head = f"capacity {report['capacity']:.1f} requests/s, asked {report['rate']:.1f}/s"
    return "\n".join([head, *rows, *lines])


if __name__ == "__main__":
    sys.exit(main())
