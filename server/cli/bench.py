"""`peftserve bench serve`: a closed loop over HTTP against any server that speaks OpenAI's completions.

Every client asks, reads the stream to its end, and asks again. Prompts are random token ids, the same for one seed.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import httpx
from tqdm import tqdm

from . import bench_kernels, client
from .errors import FAILED, UNREACHABLE, CommandError
from .measure import Measurement, summarize

LOWEST_ID, HIGHEST_ID = 32, 512  # ids that every vocabulary has, past most tokenizers' special tokens


@dataclass(frozen=True)
class Workload:
    """models: asked in turn. concurrency: clients, each with one request at a time. Lengths are in tokens."""

    models: tuple[str, ...]
    num_requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    seed: int

    def bodies(self) -> Iterator[dict[str, Any]]:
        random = Random(self.seed)
        for _, model in zip(range(self.num_requests), cycle(self.models), strict=False):
            yield {
                "model": model,
                "prompt": random.choices(range(LOWEST_ID, HIGHEST_ID), k=self.prompt_tokens),
                "max_tokens": self.output_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                "return_token_ids": True,  # a chunk for each token, also where its text is held back
            }


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("bench", help="measure a running server, or the kernels alone")
    kinds = parser.add_subparsers(title="benchmarks", required=True, metavar="BENCHMARK")
    serve = kinds.add_parser("serve", help="closed loop over HTTP", description=__doc__.splitlines()[0])
    client.add_arguments(serve, "--base-url")
    serve.add_argument("--models", required=True, metavar="A,B,C", help="model names, asked in turn")
    serve.add_argument("--num-requests", type=int, default=64, metavar="N")
    serve.add_argument("--concurrency", type=int, default=16, metavar="N", help="clients (default: 16)")
    serve.add_argument("--prompt-tokens", type=int, default=128, metavar="N")
    serve.add_argument("--output-tokens", type=int, default=64, metavar="N")
    serve.add_argument("--seed", type=int, default=0)
    serve.add_argument("--out", type=Path, metavar="FILE", help="also write the result as JSON")
    serve.set_defaults(run=run)
    bench_kernels.add_parser(kinds)


def run(arguments: argparse.Namespace) -> int:
    workload = _workload(arguments)
    measured, seconds = asyncio.run(_measure(workload, arguments.url.rstrip("/"), arguments.api_key))
    report = {"url": arguments.url, "workload": vars(workload), **summarize(measured, seconds)}
    print(_readable(report))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return FAILED if report["all"]["failed"] else 0


def _workload(arguments: argparse.Namespace) -> Workload:
    models = tuple(name for name in arguments.models.split(",") if name)
    counts = ("num_requests", "concurrency", "prompt_tokens", "output_tokens")
    for field in counts:
        if getattr(arguments, field) < 1:
            raise CommandError(f"--{field.replace('_', '-')}: {getattr(arguments, field)} is not 1 or more")
    if not models:
        raise CommandError("--models: no model is named")
    return Workload(models=models, seed=arguments.seed, **{field: getattr(arguments, field) for field in counts})


async def _measure(workload: Workload, url: str, api_key: str | None) -> tuple[list[Measurement], float]:
    """Every request's measurement, and the seconds of the whole run."""
    limits = httpx.Limits(max_connections=workload.concurrency)
    async with httpx.AsyncClient(
        base_url=url, headers=client.headers(api_key), timeout=600.0, limits=limits, trust_env=False
    ) as http:
        await _check(http, url)
        bodies, measured = workload.bodies(), list[Measurement]()
        with tqdm(total=workload.num_requests, unit="req", disable=None) as progress:
            start = time.perf_counter()
            await asyncio.gather(*(_client(http, bodies, measured, progress) for _ in range(workload.concurrency)))
            return measured, time.perf_counter() - start


async def _check(http: httpx.AsyncClient, url: str) -> None:
    try:
        response = await http.get("/v1/models")
    except httpx.HTTPError as error:
        raise CommandError(f"no answer from {url}: {error}", UNREACHABLE) from None
    if response.is_error:
        raise CommandError(f"{url}/v1/models answered {response.status_code}", FAILED)


async def _client(
    http: httpx.AsyncClient, bodies: Iterator[dict[str, Any]], measured: list[Measurement], progress: "tqdm[Any]"
) -> None:
    for body in bodies:
        measured.append(await _request(http, body))
        progress.update()


async def _request(http: httpx.AsyncClient, body: dict[str, Any]) -> Measurement:
    measurement = Measurement(body["model"], time.perf_counter())
    try:
        async with http.stream("POST", "/v1/completions", json=body) as response:
            if response.is_error:
                measurement.error = (await response.aread()).decode(errors="replace")[:500]
                return measurement
            async for line in response.aiter_lines():
                _take(line, measurement)
    except httpx.HTTPError as error:
        measurement.error = repr(error)
    measurement.end = time.perf_counter()
    return measurement


def _take(line: str, measurement: Measurement) -> None:
    """One line of the event stream."""
    if not line.startswith("data:") or (data := line[5:].strip()) == "[DONE]":
        return
    event = json.loads(data)
    if "error" in event:
        measurement.error = str(event["error"].get("message"))
    if event.get("choices"):
        measurement.chunks.append(time.perf_counter())
    if event.get("usage"):
        measurement.completion_tokens = event["usage"]["completion_tokens"]


def _readable(report: dict[str, Any]) -> str:
    rows = [("all", report["all"]), *report["models"].items()]
    lines = [f"{report['all']['requests']} requests in {report['seconds']:.2f} s"]
    heading = f"{'model':<24}{'ok':>6}{'failed':>8}{'tok/s':>10}"
    times = ("ttft_ms", "itl_ms", "e2e_ms")
    lines.append(heading + "".join(f"{name + ' p50/p90/p99':>28}" for name in times))
    for name, row in rows:
        shown = ("/".join(f"{row[key][p]:.1f}" for p in ("p50", "p90", "p99")) if row[key] else "-" for key in times)
        ok = row["requests"] - row["failed"]
        lines.append(f"{name:<24}{ok:>6}{row['failed']:>8}{row['tokens_per_second']:>10.1f}")
        lines[-1] += "".join(f"{text:>28}" for text in shown)
    lines += [f"error: {message}" for message in report["errors"]]
    return "\n".join(lines)
