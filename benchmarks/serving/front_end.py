"""The cost of the HTTP front end: CPU time of the API processes for each request and each streamed token.

    python -m benchmarks.serving.front_end [--before CHECKOUT] [--api-workers N] [--divide 1] [--out FILE.json]

The real server in a process of its own, an engine that answers at once (`instant_engine.py`) in another, and this
process as its clients, all on the same cores. CHECKOUT: an older one, whose server takes turns with this one's, so that
both meet the same neighbours: best in many short rounds (--divide: by how much), whose ratios are compared. N: as many
API processes, in turns with the one.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvloop

from ..checkouts import ROOT, link_package, script_of
from ..server_process import ServerError, cpu_seconds, free_port, running
from ..tables import Table
from .connections import drive

ENGINE = "instant_engine.py"
START_SECONDS = 60.0
CHAT = [
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "Which animals are in the table?"},
]


@dataclass(frozen=True)
class HttpScenario:
    """Equal requests over `concurrency` connections that stay open. step_ms: between two steps of the engine."""

    path: str
    body: dict[str, Any]
    num_requests: int
    concurrency: int
    step_ms: float = 0.0

    @property
    def num_tokens(self) -> int:
        return int(self.body["max_tokens"])

    def request(self) -> bytes:
        """Return the whole HTTP request."""
        body = json.dumps({"model": "instant", **self.body}).encode()
        head = f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


Servers = dict[str, tuple[list[int], int]]  # name to API processes and port


@dataclass(frozen=True)
class Contestant:
    """A checkout and its number of API processes."""

    checkout: Path
    api_workers: int = 1


_PROMPT = {"prompt": "Which animals are in the table? Write a query that names them all."}
SCENARIOS = {
    "completions of 8 tokens": HttpScenario("/v1/completions", {**_PROMPT, "max_tokens": 8}, 1500, 32),
    "chats of 8 tokens": HttpScenario("/v1/chat/completions", {"messages": CHAT, "max_tokens": 8}, 1500, 32),
    "streams of 256 tokens": HttpScenario("/v1/completions", {**_PROMPT, "max_tokens": 256, "stream": True}, 128, 64),
    "streams of 256 tokens, a step each 10 ms": HttpScenario(
        "/v1/completions", {**_PROMPT, "max_tokens": 256, "stream": True}, 64, 64, step_ms=10.0
    ),
    "streamed chats of 256 tokens": HttpScenario(
        "/v1/chat/completions", {"messages": CHAT, "max_tokens": 256, "stream": True}, 256, 64
    ),
}


def check(scenario: HttpScenario, answers: list[bytes]) -> None:
    """Check that every answer is whole: each token is an event of its own, or all are counted. Raises SystemExit."""
    streamed = scenario.num_tokens + 1 + scenario.path.startswith("/v1/chat")
    wanted = (b"data: ", streamed) if scenario.body.get("stream") else (b'"completion_tokens":8', 1)
    faulty = [answer for answer in answers if answer.count(wanted[0]) != wanted[1]]
    if faulty or len(answers) != scenario.num_requests:
        raise SystemExit(f"{len(faulty)} answers are not as they should be: {faulty[:1]!r:.1000}")


def api_processes(pid: int) -> list[int]:
    """Return a server's first process and its children but the engine."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [pid, *(child for child in children if ENGINE.encode() not in Path(f"/proc/{child}/cmdline").read_bytes())]


@contextlib.contextmanager
def server(contestant: Contestant, step_ms: float) -> Iterator[tuple[list[int], int]]:
    """Start a server; yield its API processes and its port when it is ready. Raises SystemExit if it does not start."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        link_package(contestant.checkout, folder / "package")
        script = str(script_of(contestant.checkout, ENGINE))
        words = [sys.executable, script, "serve", str(port), str(folder / "state"), str(step_ms)]
        words += [str(contestant.api_workers)] if contestant.api_workers > 1 else []
        environment = {**os.environ, "PYTHONPATH": str(folder / "package")}
        url = f"http://127.0.0.1:{port}"
        try:
            with running(words, url, "/health/ready", folder / "log", START_SECONDS, environment) as pid:
                yield api_processes(pid), port
        except ServerError as error:
            raise SystemExit(str(error)) from None


def measure(scenario: HttpScenario, pids: list[int], port: int) -> dict[str, float]:
    """Return rates and CPU time of one run of a scenario. pids: the API processes."""
    before, begun = cpu_seconds(pids), time.perf_counter()
    answers = uvloop.run(drive(scenario.request(), scenario.num_requests, scenario.concurrency, port))
    seconds, cpu = time.perf_counter() - begun, cpu_seconds(pids) - before
    check(scenario, answers)
    tokens = scenario.num_requests * scenario.num_tokens
    return {
        "requests_per_second": scenario.num_requests / seconds,
        "tokens_per_second": tokens / seconds,
        "cpu_us_per_request": cpu / scenario.num_requests * 1e6,
        "cpu_us_per_token": cpu / tokens * 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path)
    parser.add_argument("--api-workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--divide", type=int, default=1, help="the requests of each round by so much")
    parser.add_argument("--only", help="scenarios whose name begins so", default="")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    contestants = {} if args.before is None else {"before": Contestant(args.before.resolve())}
    contestants["after"] = Contestant(ROOT)
    if args.api_workers > 1:
        contestants[f"after, {args.api_workers} processes"] = Contestant(ROOT, args.api_workers)
    chosen = {
        name: replace(scenario, num_requests=max(scenario.concurrency, scenario.num_requests // args.divide))
        for name, scenario in SCENARIOS.items()
        if name.startswith(args.only)
    }
    result: dict[str, Any] = {}
    for step_ms in sorted({scenario.step_ms for scenario in chosen.values()}):
        with contextlib.ExitStack() as stack:
            servers = {name: stack.enter_context(server(who, step_ms)) for name, who in contestants.items()}
            for name, scenario in chosen.items():
                if scenario.step_ms == step_ms:
                    result[name] = _take_turns(scenario, servers, args.rounds)
                    _show(name, result[name])
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def _take_turns(
    scenario: HttpScenario, servers: dict[str, tuple[list[int], int]], rounds: int
) -> dict[str, dict[str, float]]:
    """Return each contestant's medians, after one round that is not counted, and those of the ratios within a round."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for number in range(rounds + 1):
        for name in list(servers) if number % 2 else reversed(servers):
            seen[name].append(measure(scenario, *servers[name]))
    medians = {
        name: {key: round(statistics.median(one[key] for one in runs[1:]), 1) for key in runs[0]}
        for name, runs in seen.items()
    }
    if "before" in seen:
        medians["after / before"] = _ratios(seen["before"][1:], seen["after"][1:])
    return medians


def _ratios(before: list[dict[str, float]], after: list[dict[str, float]]) -> dict[str, float]:
    return {
        key: round(statistics.median(new[key] / old[key] for old, new in zip(before, after, strict=True)), 4)
        for key in before[0]
    }


def _show(name: str, medians: dict[str, dict[str, float]]) -> None:
    names = next(iter(medians.values()))
    table = Table({name: "<28", **{figure: f"{len(figure) + 2}" for figure in names}})
    print(table.heading())
    for who, values in medians.items():
        digits = ",.3f" if "/" in who else ",.0f"
        print(table.line(f"  {who}", *(f"{value:{digits}}" for value in values.values())), flush=True)


if __name__ == "__main__":
    main()
