"""Throughput by the number of registered adapters: a server for each number, whose windows of load take turns.

`hot`: requests go to the same few adapters, which stay on the device: only the number of registered ones differs.
`power`: requests go to all, the k-th with a probability proportional to 1 / k, and many need a load.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from peftserve.server.cli.load import trace
from peftserve.server.cli.load.generator import send
from peftserve.server.cli.load.workload import Range, Workload

from .server import MeasuredServer

CLIENTS = 16
OUTPUT_TOKENS = Range(16, 16)
PROMPT_TOKENS = Range(16, 16)
BASELINE = 10  # registered adapters, which others are compared to; with fewer, a batch has fewer adapters too
LOADS = ("hot", "power")


async def measure(servers: Mapping[int, MeasuredServer], *, hot: int, rounds: int, requests: int) -> dict[str, Any]:
    """Measure; return registrations a second and the figures under each load, as JSON by number registered.

    servers: by the number of copies to register. hot: how many adapters the first load asks for at most.
    """
    names = {}
    made: dict[int, dict[str, Any]] = {}
    for number, server in servers.items():
        start = time.perf_counter()
        names[number] = await server.register(number)
        made[number] = {"registered_per_second": number / (time.perf_counter() - start)}
    runs: dict[str, dict[int, list[dict[str, float]]]] = {load: {n: [] for n in servers} for load in LOADS}
    order = [*servers]
    with tqdm(total=len(LOADS) * (rounds + 1) * len(servers), unit="window", desc="registered", disable=None) as bar:
        for load in LOADS:
            for turn in range(rounds + 1):
                first = turn % len(order)
                for number in [*order[first:], *order[:first]]:
                    models = names[number][:hot] if load == "hot" else names[number]
                    run = await _window(servers[number], models, requests, turn)
                    if turn:  # the first brings adapters to the device and is not counted
                        runs[load][number].append(run)
                    bar.update()
    for load, by_number in runs.items():
        for number, found in by_number.items():
            made[number][load] = summarize(found, by_number.get(BASELINE, found))
    return {str(number): about for number, about in made.items()}


def summarize(found: Sequence[Mapping[str, float]], baseline: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return medians of the figures, and of their ratios to the baseline's window of the same round."""
    made: dict[str, Any] = {name: statistics.median(run[name] for run in found) for name in found[0]}
    for name, key in (("over_baseline", "tokens_per_second"), ("cpu_over_baseline", "cpu_ms_per_token")):
        ratios = [own[key] / base[key] for own, base in zip(found, baseline, strict=True) if base[key]]
        made[name] = statistics.median(ratios) if ratios else None
    return made


async def _window(server: MeasuredServer, models: Sequence[str], requests: int, seed: int) -> dict[str, float]:
    workload = Workload(
        models=tuple(models),
        num_requests=requests,
        seed=seed,
        popularity="zipf",
        concurrency=CLIENTS,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
    )
    drawn = trace.draw(workload)
    before, cpu = await server.loads(), server.cpu_seconds()
    measured, seconds = await send(drawn, server.target, workload.concurrency, quiet=True)
    cpu = server.cpu_seconds() - cpu
    loads = await server.loads() - before
    tokens = sum(measurement.num_tokens for measurement in measured if measurement.is_good)
    failed = sum(not measurement.is_good for measurement in measured)
    return {
        "tokens_per_second": tokens / seconds,
        "cpu_ms_per_token": 1000 * cpu / max(tokens, 1),
        "hit_rate": 1 - loads / requests,
        "failed": failed,
    }
