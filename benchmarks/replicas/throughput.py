"""The ingress's cost: one replica behind it, against one engine without it, whose windows of load take turns."""

import statistics
from collections.abc import Sequence
from typing import Any

from peftserve.server.cli.load import trace
from peftserve.server.cli.load.generator import Target, send
from peftserve.server.cli.load.workload import Range, Workload

from .servers import Server

LENGTH = Range(64, 64)


async def measure(
    bare: Server, through: Server, models: Sequence[str], *, rounds: int, requests: int, clients: int
) -> dict[str, Any]:
    """Return medians by window, and the median of the ratios of windows of one round. The first is a warm-up."""
    runs: dict[str, list[dict[str, float]]] = {"bare": [], "through": []}
    pairs = (("bare", bare), ("through", through))
    for turn in range(rounds + 1):
        for name, server in pairs[:: 1 if turn % 2 else -1]:
            run = await _window(server, models, requests, clients, turn)
            if turn:
                runs[name].append(run)
    return {
        "clients": clients,
        "requests": requests,
        **{name: _medians(found) for name, found in runs.items()},
        "ratio": _ratio(runs, "tokens_per_second"),
        "cpu_ratio": _ratio(runs, "cpu_ms_per_token"),
    }


def _medians(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in found) for name in found[0]}


def _ratio(runs: dict[str, list[dict[str, float]]], name: str) -> float:
    return statistics.median(t[name] / b[name] for t, b in zip(runs["through"], runs["bare"], strict=True))


async def _window(server: Server, models: Sequence[str], requests: int, clients: int, seed: int) -> dict[str, float]:
    workload = Workload(tuple(models), requests, seed, concurrency=clients, prompt_tokens=LENGTH, output_tokens=LENGTH)
    cpu = server.cpu_seconds()
    measured, seconds = await send(trace.draw(workload), Target(server.url), clients, quiet=True)
    tokens = sum(measurement.num_tokens for measurement in measured if measurement.is_good)
    return {
        "tokens_per_second": tokens / seconds,
        "cpu_ms_per_token": 1000 * (server.cpu_seconds() - cpu) / tokens,
        "failed": sum(not measurement.is_good for measurement in measured),
    }
