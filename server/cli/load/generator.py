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
from .stream import ask
from .trace import Request

_SILENCE = 600.0  # seconds without a word from the server, after which a request has failed
_IDLE = 2.0  # seconds that a connection may wait for its next request: servers close theirs after 5, or as one is sent


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
    is_open = trace[0].arrival is not None
    calls = [Call(request, target.body(request)) for request in trace]
    async with _client(target, 1) as http:  # closed before the clock runs, as a server may do with it after an error
        await _check(http, target.url)
    async with _client(target, None if is_open else concurrency) as http:
        with tqdm(total=len(calls), unit="req", disable=None) as progress:
            start = time.perf_counter()
            measured = await (_open(http, calls, progress) if is_open else _closed(http, calls, concurrency, progress))
            return measured, time.perf_counter() - start


def _client(target: Target, connections: int | None) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_IDLE)
    timeout = httpx.Timeout(_SILENCE, pool=None)
    extra = {"content-type": "application/json", **headers(target.api_key)}
    return httpx.AsyncClient(
        base_url=target.url.rstrip("/"), headers=extra, timeout=timeout, limits=limits, trust_env=False
    )


async def _check(http: httpx.AsyncClient, url: str) -> None:
    try:
        response = await http.get("/v1/models")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CommandError(f"no answer from {url}: {error}", UNREACHABLE) from None
    if response.is_client_error:  # one that fails at its own list may well answer: transformers' does, without a cache
        raise CommandError(f"{url}/v1/models answered {response.status_code}", FAILED)


async def _closed(
    http: httpx.AsyncClient, calls: Sequence[Call], concurrency: int, progress: "tqdm[Any]"
) -> list[Measurement]:
    measured = [Measurement(call.request.model, 0.0) for call in calls]
    waiting = iter(zip(calls, measured, strict=True))
    await asyncio.gather(*(_one_client(http, waiting, progress) for _ in range(min(concurrency, len(calls)))))
    return measured


async def _one_client(
    http: httpx.AsyncClient, waiting: Iterator[tuple[Call, Measurement]], progress: "tqdm[Any]"
) -> None:
    for call, measurement in waiting:
        measurement.start = time.perf_counter()
        await ask(http, call.body, measurement)
        progress.update()


async def _open(http: httpx.AsyncClient, calls: Sequence[Call], progress: "tqdm[Any]") -> list[Measurement]:
    start = time.perf_counter()
    measured = [Measurement(call.request.model, start + (call.request.arrival or 0.0)) for call in calls]
    async with asyncio.TaskGroup() as tasks:
        for call, measurement in zip(calls, measured, strict=True):
            await asyncio.sleep(max(0.0, measurement.start - time.perf_counter()))
            tasks.create_task(_send(http, call, measurement, progress))
    return measured


async def _send(http: httpx.AsyncClient, call: Call, measurement: Measurement, progress: "tqdm[Any]") -> None:
    measurement.late = max(0.0, time.perf_counter() - measurement.start)
    await ask(http, call.body, measurement)
    progress.update()
