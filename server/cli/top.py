"""`peftserve top`: a running server at a glance, again and again: its adapters, throughput, waiting and memory."""

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .adapters import readable_size
from .client import Server, add_arguments
from .errors import FAILED, CommandError
from .parser import checked
from .values import finite

_LINE = re.compile(r"([A-Za-z_:][\w:]*(?:\{[^}]*\})?) (\S+)")
_TIERS = ("device", "host", "disk")
_TTFT = "peftserve_time_to_first_token_seconds"
LEAST_SECONDS = 0.2


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "top",
        help="watch the adapters and the throughput of a running server",
        description="Show adapters, throughput, waiting and memory of a running server until ^C. Where the output is "
        "no terminal, one frame.",
    )
    parser.add_argument("--once", action="store_true", help="print one frame, for scripts")
    parser.add_argument(
        "--interval", metavar="S", type=checked(finite), default=1.0, help="seconds of a frame (default: 1)"
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if not LEAST_SECONDS <= arguments.interval <= 3600:
        raise CommandError(f"--interval: {arguments.interval:g} is not from {LEAST_SECONDS} to 3600 seconds")
    with Server(arguments.url, arguments.api_key) as server:
        if arguments.once or not sys.stdout.isatty():
            before = sample(server)
            time.sleep(min(arguments.interval, 1.0))
            Console().print(frame(server.url, before, sample(server), None))
        else:
            watch(server, arguments.interval)
    return 0


def watch(server: Server, interval: float) -> None:
    """Draw frames until ^C ends it. Raises CommandError when the server has gone."""
    console, now = Console(), sample(server)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(frame(server.url, now, now, console.height), refresh=True)
            time.sleep(interval)
            before, now = now, sample(server)
            live.update(frame(server.url, before, now, console.height), refresh=True)


@dataclass(frozen=True)
class Sample:
    """A server's metrics at a time. series: name with labels, as Prometheus writes them. cards: of the adapters."""

    seconds: float
    series: Mapping[str, float]
    cards: Sequence[Mapping[str, Any]]

    def of(self, name: str) -> float:
        return self.series.get(name, 0.0)

    def since(self, before: "Sample", name: str) -> float:
        """Return how much a counter has grown; one that began anew has no growth."""
        return max(0.0, self.of(name) - before.of(name))

    def rate(self, before: "Sample", name: str) -> float:
        return self.since(before, name) / max(self.seconds - before.seconds, 1e-9)


def sample(server: Server) -> Sample:
    """Ask a server. Raises CommandError."""
    series = parse(server.text("/metrics"))
    if "peftserve_sequences_running" not in series:
        raise CommandError(f"{server.url} is no peftserve server, or one that is still loading", FAILED)
    return Sample(time.monotonic(), series, server.listed("/v1/adapters"))


def parse(text: str) -> dict[str, float]:
    """Return the value of each series of Prometheus's text form. Lines that are none are left out."""
    series = {}
    for match in (_LINE.match(line) for line in text.splitlines() if not line.startswith("#")):
        if match:
            with contextlib.suppress(ValueError):
                series[match[1]] = float(match[2])
    return series


def frame(url: str, before: Sample, now: Sample, height: int | None) -> Group:
    """Return what is shown. height: lines of the terminal; None: all adapters are listed."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(before, now):
        facts.add_row(Text(name, style="bold"), value)
    return Group(Text(f"peftserve {url}", style="bold"), facts, _adapters(now, height and max(1, height - 14)))


def _facts(before: Sample, now: Sample) -> list[tuple[str, str]]:
    answers = now.since(before, f"{_TTFT}_count")
    ttft = f"{1000 * now.since(before, f'{_TTFT}_sum') / answers:.0f} ms" if answers else "-"
    held = [f"{tier} {readable_size(now.of(_labelled('peftserve_adapter_bytes', tier)))}" for tier in _TIERS[:2]]
    return [
        (
            "tokens/s",
            f"{now.rate(before, 'peftserve_generation_tokens_total'):.1f} out, "
            f"{now.rate(before, 'peftserve_prompt_tokens_total'):.1f} in",
        ),
        ("first token", ttft),
        (
            "sequences",
            f"{now.of('peftserve_sequences_running'):.0f} running, {now.of('peftserve_sequences_waiting'):.0f} waiting",
        ),
        ("KV cache", f"{now.of('peftserve_kv_cache_usage_ratio'):.1%} used"),
        ("adapters", ", ".join(held)),
    ]


def _labelled(name: str, tier: str) -> str:
    return f'{name}{{tier="{tier}"}}'


def _adapters(now: Sample, most: int | None) -> Table:
    table = Table("adapter", "version", "method", "tier", "running", "size")
    busy_first = sorted(now.cards, key=lambda card: (-card["requests_running"], _TIERS.index(card["state"])))
    for card in busy_first[:most]:
        running, size = str(card["requests_running"]), readable_size(card["size"])
        table.add_row(card["name"], str(card["version"]), card["method"], card["state"], running, size)
    if most is not None and len(busy_first) > most:
        table.add_row(f"and {len(busy_first) - most} more")
    return table
