"""How many adapters a second go through the device: requests of one token, round-robin over more than fit it."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from .subject import Subject


async def measure(subject: Subject, names: list[str], requests: int, clients: int) -> dict[str, Any]:
    """JSON: by tier that they come from, adapters a second, and how many requests needed a load.

    `host` is missing where the host holds too few to need loads.
    """
    states = await subject.states()
    on_host = [name for name in names if states[name] == "host"]
    made = {"disk": await _cycle(subject, names, requests, clients)}
    if len(on_host) > 1:
        for name in on_host:  # they are the ones used last from here on
            await subject.ask(name)
        made["host"] = await _cycle(subject, on_host, requests, clients)
    return made


async def _cycle(subject: Subject, names: list[str], requests: int, clients: int) -> dict[str, Any]:
    before = await subject.loads()
    with tqdm(total=requests, unit="req", desc="cycle", disable=None) as progress:
        waiting = iter(range(requests))
        start = time.perf_counter()
        await asyncio.gather(*(_one_client(subject, names, waiting, progress) for _ in range(clients)))
        seconds = time.perf_counter() - start
    loads = await subject.loads() - before
    rates = {"requests_per_second": requests / seconds, "loads_per_second": loads / seconds}
    return {**rates, "requests": requests, "loads": loads, "adapters": len(names), "clients": clients}


async def _one_client(subject: Subject, names: list[str], waiting: Iterator[int], progress: "tqdm[Any]") -> None:
    for index in waiting:
        await subject.ask(names[index % len(names)])
        progress.update()
