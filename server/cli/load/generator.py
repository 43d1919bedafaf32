"""Sends a trace to a server: in a closed loop, where clients ask and wait, or in an open one, at the arrivals.

In an open loop a request is due at its arrival and its latency counts from there, however late it is sent: what a slow
server makes wait is measured. How late requests were sent is measured too.
"""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from tqdm import tqdm

from ..client import headers
from ..errors import FAILED, UNREACHABLE, CommandError
from .dialect import DIALECTS
from .measure import Measurement
from .stream import Endpoint, ask
from .trace import Request


@dataclass(frozen=True)
class Target:
    """The server. dialect: a name of DIALECTS. names: what it calls models of the trace, where not the same."""

    url: str
    api_key: str | None = None
    dialect: str = "vllm"
    names: Mapping[str, str] = field(default_factory=dict)

    def body(self, request: Request) -> bytes:
        named = replace(request, model=self.names.get(request.model, request.model))
        return json.dumps(DIALECTS[self.dialect](named)).encode()


@dataclass(frozen=True)
class Call:
    """A request and its body, which is made before the clock runs."""

    request: Request
    body: bytes


def measure(trace: Sequence[Request], target: Target, concurrency: int) -> tuple[list[Measurement], float]:
    """Every request's measurement in the trace's order, and the seconds of the whole run.

    concurrency: clients of a closed loop, which is what a trace without arrivals asks for.
    """
    return asyncio.run(_measure(trace, target, concurrency))


async def _measure(trace: Sequence[Request], target: Target, concurrency: int) -> tuple[list[Measurement], float]:
    await _check(target)
    return await send(trace, target, concurrency)


async def send(
    trace: Sequence[Request], target: Target, concurrency: int, *, quiet: bool = False
) -> tuple[list[Measurement], float]:
    """The same, on a loop that runs, without a look at the server first. quiet: shows no progress."""
    is_open = trace[0].arrival is not None
    calls = [Call(request, target.body(request)) for request in trace]
    endpoint = Endpoint(httpx.URL(target.url), headers(target.api_key))
    with tqdm(total=len(calls), unit="req", disable=quiet or None) as progress:
        start = time.perf_counter()
        sent = _open(endpoint, calls, progress) if is_open else _closed(endpoint, calls, concurrency, progress)
        return await sent, time.perf_counter() - start


async def _check(target: Target) -> None:
    url = target.url.rstrip("/")
    try:
        async with httpx.AsyncClient(headers=headers(target.api_key), trust_env=False) as http:
            response = await http.get(f"{url}/v1/models")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CommandError(f"no answer from {url}: {error}", UNREACHABLE) from None
    if response.is_client_error:  # one that fails at its own list may well answer: transformers' does, without a cache
        raise CommandError(f"{url}/v1/models answered {response.status_code}", FAILED)


async def _closed(
    endpoint: Endpoint, calls: Sequence[Call], concurrency: int, progress: "tqdm[Any]"
) -> list[Measurement]:
    measured = [Measurement(call.request.model, 0.0) for call in calls]
    waiting = iter(zip(calls, measured, strict=True))
    await asyncio.gather(*(_one_client(endpoint, waiting, progress) for _ in range(min(concurrency, len(calls)))))
    return measured


async def _one_client(endpoint: Endpoint, waiting: Iterator[tuple[Call, Measurement]], progress: "tqdm[Any]") -> None:
    for call, measurement in waiting:
        measurement.start = time.perf_counter()
        await ask(endpoint, call.body, measurement)
        progress.update()


async def _open(endpoint: Endpoint, calls: Sequence[Call], progress: "tqdm[Any]") -> list[Measurement]:
    start = time.perf_counter()
    measured = [Measurement(call.request.model, start + (call.request.arrival or 0.0)) for call in calls]
    async with asyncio.TaskGroup() as tasks:
        for call, measurement in zip(calls, measured, strict=True):
            await asyncio.sleep(max(0.0, measurement.start - time.perf_counter()))
            tasks.create_task(_send(endpoint, call, measurement, progress))
    return measured


async def _send(endpoint: Endpoint, call: Call, measurement: Measurement, progress: "tqdm[Any]") -> None:
    measurement.late = max(0.0, time.perf_counter() - measurement.start)
    await ask(endpoint, call.body, measurement)
    progress.update()
