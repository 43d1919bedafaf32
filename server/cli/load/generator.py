"""The load generator: sends a trace to a server in a closed loop, where clients wait, or in an open one, at arrivals.

In an open loop a request's latency counts from its arrival, however late it is sent: what a slow server makes wait is
measured. How late requests were sent is measured too. All dialects ask for greedy text of exactly the trace's length.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from ..client import headers, making, reaching
from ..errors import FAILED, CommandError
from ..progress import Counter, progress
from .stream import Endpoint, Measurement, ask
from .trace import Request

Body = dict[str, Any]


def vllm(request: Request) -> Body:
    """Return OpenAI's completions request with vLLM's extra fields, which peftserve, vLLM and SGLang take."""
    return {
        **openai(request),
        "ignore_eos": True,
        "return_token_ids": True,  # a chunk for each token, also where its text is held back
    }


def openai(request: Request) -> Body:
    """Return a request of OpenAI's own fields alone: an output may end before its length."""
    return {**_common(request), "prompt": request.prompt(), "stream_options": {"include_usage": True}}


def transformers(request: Request) -> Body:
    """Return a request for `transformers serve`, which takes only text and refuses fields that it does not know."""
    config = {"eos_token_id": -1, "pad_token_id": 0}  # -1 is no token of any model: nothing ends an output early
    return {**_common(request), "prompt": _text(request), "generation_config": json.dumps(config)}


def _common(request: Request) -> Body:
    return {"model": request.model, "max_tokens": request.output_tokens, "temperature": 0, "stream": True}


def _text(request: Request) -> str:
    """Return the prompt's ids as words, which a tokenizer takes for about as many tokens."""
    return " ".join(str(token) for token in request.prompt())


DIALECTS: dict[str, Callable[[Request], Body]] = {"vllm": vllm, "openai": openai, "transformers": transformers}


@dataclass(frozen=True)
class Target:
    """The server under load. dialect: a key of DIALECTS. names: its names of the trace's models, where other."""

    url: str
    api_key: str | None = None
    dialect: str = "vllm"
    names: Mapping[str, str] = field(default_factory=dict)

    def body(self, request: Request) -> bytes:
        """Return the request's JSON."""
        named = replace(request, model=self.names.get(request.model, request.model))
        return json.dumps(DIALECTS[self.dialect](named)).encode()


@dataclass(frozen=True)
class Call:
    """A request and its body, which is encoded before the clock starts."""

    request: Request
    body: bytes


def measure(trace: Sequence[Request], target: Target, concurrency: int) -> tuple[list[Measurement], float]:
    """Send a trace; return every request's measurement in the trace's order, and the seconds of the whole run.

    concurrency: clients of a closed loop, for a trace without arrivals. Raises CommandError if no server answers.
    """
    return asyncio.run(_measure(trace, target, concurrency))


async def _measure(trace: Sequence[Request], target: Target, concurrency: int) -> tuple[list[Measurement], float]:
    await _check(target)
    return await send(trace, target, concurrency)


async def send(
    trace: Sequence[Request], target: Target, concurrency: int, *, quiet: bool = False
) -> tuple[list[Measurement], float]:
    """Send a trace from a running event loop, without asking first whether a server answers. quiet: no progress bar."""
    is_open = trace[0].arrival is not None
    calls = [Call(request, target.body(request)) for request in trace]
    endpoint = Endpoint(httpx.URL(target.url), headers(target.api_key))
    with progress("requests", len(calls), quiet=quiet) as show:
        counter = Counter(show, len(calls))
        start = time.perf_counter()
        sent = _open(endpoint, calls, counter) if is_open else _closed(endpoint, calls, concurrency, counter)
        return await sent, time.perf_counter() - start


async def _check(target: Target) -> None:
    url = target.url.rstrip("/")
    with making(url), reaching(url):
        async with httpx.AsyncClient(headers=headers(target.api_key), trust_env=False) as http:
            response = await http.get(f"{url}/v1/models")
    if response.is_client_error:  # a 5xx here may still serve completions: transformers' list fails without a cache
        raise CommandError(f"{url}/v1/models answered {response.status_code}", FAILED)


async def _closed(endpoint: Endpoint, calls: Sequence[Call], concurrency: int, counter: Counter) -> list[Measurement]:
    measured = [Measurement(call.request.model, 0.0) for call in calls]
    waiting = iter(zip(calls, measured, strict=True))
    await asyncio.gather(*(_one_client(endpoint, waiting, counter) for _ in range(min(concurrency, len(calls)))))
    return measured


async def _one_client(endpoint: Endpoint, waiting: Iterator[tuple[Call, Measurement]], counter: Counter) -> None:
    for call, measurement in waiting:
        measurement.start = time.perf_counter()
        await ask(endpoint, call.body, measurement)
        counter.advance()


async def _open(endpoint: Endpoint, calls: Sequence[Call], counter: Counter) -> list[Measurement]:
    start = time.perf_counter()
    measured = [Measurement(call.request.model, start + (call.request.arrival or 0.0)) for call in calls]
    async with asyncio.TaskGroup() as tasks:
        for call, measurement in zip(calls, measured, strict=True):
            await asyncio.sleep(max(0.0, measurement.start - time.perf_counter()))
            tasks.create_task(_send(endpoint, call, measurement, counter))
    return measured


async def _send(endpoint: Endpoint, call: Call, measurement: Measurement, counter: Counter) -> None:
    measurement.late = max(0.0, time.perf_counter() - measurement.start)
    await ask(endpoint, call.body, measurement)
    counter.advance()
