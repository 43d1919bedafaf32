"""How many requests find their adapter in memory: Zipf's popularity, a quarter of the adapters on each device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftserve.server.cli.load import trace
from peftserve.server.cli.load.generator import Target, send
from peftserve.server.cli.load.workload import Range, Workload

from ..swap.copies import Copies
from ..swap.server import MeasuredServer
from .servers import Server

LENGTH = Range(16, 16)  # of prompts and of outputs


def flags(adapters: int) -> Sequence[str]:
    """Return the settings by which each replica has a quarter of the adapters on its device, and half on its host."""
    return ("--max-loras", str(adapters // 4), "--max-cpu-loras", str(adapters // 2))


async def measure(server: Server, adapter: Path, *, adapters: int, requests: int, clients: int) -> dict[str, Any]:
    """Upload copies of an adapter, warm up with as many requests as are counted then, and return shares by tier."""
    async with MeasuredServer(server.url, None, Copies(adapter), keep=False) as copies:
        names = tuple(await copies.register(adapters))
        await _send(server, names, requests, clients, 0)
        before, loads = server.dealt(), server.metric("peftserve_adapter_loads_total")
        failed, seconds = await _send(server, names, requests, clients, 1)
        after = server.dealt()
        counted = {tier: after[tier] - before[tier] for tier in after}
        total = sum(counted.values())
        return {
            "replicas": server.replicas,
            "adapters": adapters,
            "on_each_device": adapters // 4,
            "requests": requests,
            "failed": failed,
            "shares": {tier: number / total for tier, number in counted.items()},
            "loads_per_request": (server.metric("peftserve_adapter_loads_total") - loads) / requests,
            "requests_per_second": requests / seconds,
        }


async def _send(server: Server, names: tuple[str, ...], requests: int, clients: int, seed: int) -> tuple[int, float]:
    """Return how many requests have failed, and the seconds of all."""
    workload = Workload(names, requests, seed, "zipf", concurrency=clients, prompt_tokens=LENGTH, output_tokens=LENGTH)
    measured, seconds = await send(trace.draw(workload), Target(server.url), clients, quiet=True)
    return sum(not measurement.is_good for measurement in measured), seconds
