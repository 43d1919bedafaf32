"""Adapters a second through the device: requests of one token, round-robin over more adapters than it holds."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from .server import MeasuredServer


async def measure(server: MeasuredServer, names: list[str], requests: int, clients: int) -> dict[str, Any]:
    """Measure requests and loads a second; return them as JSON by the tier from which adapters are loaded.

    `host` is missing where the host holds too few adapters for loads to be needed.
    """
    states = await server.states()
    on_host = [name for name in names if states[name] == "host"]
    made = {"disk": await _cycle(server, names, requests, clients)}
    if len(on_host) > 1:
        for name in on_host:  # now the most recently used ones: they stay on the host
            await server.ask(name)
        made["host"] = await _cycle(server, on_host, requests, clients)
    return made


async def _cycle(server: MeasuredServer, names: list[str], requests: int, clients: int) -> dict[str, Any]:
    before = await server.loads()
    with tqdm(total=requests, unit="req", desc="cycle", disable=None) as progress:
        waiting = iter(range(requests))
        start = time.perf_counter()
        await asyncio.gather(*(_one_client(server, names, waiting, progress) for _ in range(clients)))
        seconds = time.perf_counter() - start
    loads = await server.loads() - before
    rates = {"requests_per_second": requests / seconds, "loads_per_second": loads / seconds}
    return {**rates, "requests": requests, "loads": loads, "adapters": len(names), "clients": clients}


async def _one_client(server: MeasuredServer, names: list[str], waiting: Iterator[int], progress: "tqdm[Any]") -> None:
    for index in waiting:
        await server.ask(names[index % len(names)])
        progress.update()
