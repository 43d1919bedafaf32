"""Two API processes are one server: to clients that come and go, when adapters change, and when a process is killed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import httpx
import openai
import pytest

from peftserve.server.demo import DEMO_ADAPTERS, DEMO_MODEL

pytestmark = pytest.mark.slow

AT_ONCE = 12  # connections, which all come to one process once in 2048 times
SHORT = {"prompt": [20, 30, 40], "max_tokens": 4, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
LONG = {**SHORT, "max_tokens": 160}
LONGEST = {**SHORT, "max_tokens": 480}
PATIENCE = 180.0
SOON = 45.0
"""Seconds within which an error must come, before --engine-timeout. On an idle machine it takes less than 2."""


@pytest.fixture(scope="module")
def server(oracle: ModuleType, device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("workers")
    flags = ("--device", device, "--served-model-name", "base", "--api-workers", "2")
    server = oracle.RunningServer.start(DEMO_MODEL, folder / "state", folder / "log", *flags)
    yield server
    assert server.stop() == 0, "the last test has killed the engine, which is no reason for a bad end"


@asynccontextmanager
async def connected(oracle: ModuleType, server: Any) -> AsyncIterator[Any]:
    """Give an `oracle.Client` that makes a connection for each request, which the kernel deals out to the processes."""
    once = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server.url, limits=once, timeout=PATIENCE) as http:
        official = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, http_client=http)
        yield oracle.Client(http, official)


@pytest.fixture
async def client(oracle: ModuleType, server: Any) -> AsyncIterator[Any]:
    async with connected(oracle, server) as client:
        yield client


async def complete_all(client: Any, **body: Any) -> tuple[list[int], str]:
    """Ask on many connections and return the tokens and the adapter that answered, the same on all of them."""
    asking = (client.complete_by_openai({**SHORT, **body}, stream=i % 2 == 0) for i in range(AT_ONCE))
    answers = await asyncio.gather(*asking)
    assert len({(tuple(answer.token_ids), answer.adapter) for answer in answers}) == 1
    return answers[0].token_ids, answers[0].adapter


async def post_all(client: Any, body: dict[str, Any]) -> list[httpx.Response]:
    return await asyncio.gather(*(client.http.post("/v1/completions", json=body) for _ in range(AT_ONCE)))


async def begin(client: Any, model: str, options: dict[str, Any] = LONG) -> asyncio.Task[Any]:
    """Return a stream that has given its first chunk."""
    begun = asyncio.Event()
    stream = asyncio.create_task(client.stream({**options, "model": model}, begun))
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([stream, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return stream


def worker_pid(oracle: ModuleType, server: Any) -> int:
    """Return the process id of the second API process, or 0 while there is none."""
    children = oracle.children_of(server.process.pid)
    return next((pid for pid, command in children.items() if b"api.worker" in command), 0)


async def test_a_change_is_seen_on_every_connection_once_it_is_answered(server: Any, client: Any) -> None:
    """Uploads, replacements, the default and deletions, while the streams of a version run to their end on it."""
    assert server.upload("sql", DEMO_ADAPTERS["sql"]).status_code == 201
    tokens, version = await complete_all(client, model="sql")
    assert version == "sql@1"
    streams = await asyncio.gather(*(begin(client, "sql") for _ in range(AT_ONCE)))
    assert server.upload("sql", DEMO_ADAPTERS["title"]).status_code == 201
    new_tokens, version = await complete_all(client, model="sql")
    assert (version, new_tokens == tokens) == ("sql@2", False)
    assert server.client.put("/v1/default-adapter", json={"adapter": "sql"}).status_code == 200
    assert await complete_all(client, model="default") == (new_tokens, "sql@2")
    assert (await client.http.delete("/v1/adapters/sql")).status_code == 200
    late = await post_all(client, {**SHORT, "model": "sql"})
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in late} == {(404, "model_not_found")}
    assert (await complete_all(client, model="default"))[1] == "base"
    answers = [await stream for stream in streams]
    assert {answer.adapter for answer in answers} == {"sql@1"}
    assert len({tuple(answer.token_ids) for answer in answers}) == 1
    assert answers[0].token_ids[: len(tokens)] == tokens
    assert len(answers[0].token_ids) == LONG["max_tokens"]
    server.wait_for_metric("peftserve_adapter_bytes", 0)
    server.wait_until(lambda: not list((server.state / "adapters").iterdir()), "delete the files")


async def test_every_process_answers_alike_and_counters_are_the_sum(server: Any, client: Any) -> None:
    before = {name: server.metric(f"peftserve_{name}_total") for name in ("requests", "generation_tokens")}
    await complete_all(client, model="base")
    assert server.metric("peftserve_requests_total") - before["requests"] == AT_ONCE
    assert server.metric("peftserve_generation_tokens_total") - before["generation_tokens"] == 4 * AT_ONCE
    for method, path in [
        ("GET", "/v1/models"),
        ("GET", "/v1/adapters?limit=0"),
        ("GET", "/v1/nothing"),
        ("GET", "/v1/completions"),
        ("POST", "/v1/adapters"),
        ("DELETE", "/v1/adapters/nobody"),
        ("GET", "/openapi.json"),
        ("GET", "/health/ready"),
    ]:
        answers = await asyncio.gather(*(client.http.request(method, path) for _ in range(AT_ONCE)))
        assert len({(answer.status_code, answer.content) for answer in answers}) == 1, path


async def test_a_killed_process_takes_its_own_requests_only(oracle: ModuleType, server: Any, client: Any) -> None:
    """What they held comes back, what was counted stays, and another process takes its place."""
    assert server.upload("dates", DEMO_ADAPTERS["dates"]).status_code == 201
    tokens, _ = await complete_all(client, model="dates")
    counted, killed = server.metric("peftserve_requests_total"), worker_pid(oracle, server)
    streams = await asyncio.gather(*(begin(client, "dates", LONGEST) for _ in range(AT_ONCE)))
    os.kill(killed, signal.SIGKILL)
    answers = await asyncio.gather(*streams, return_exceptions=True)
    whole = [answer for answer in answers if not isinstance(answer, httpx.TransportError)]
    assert 0 < len(whole) < AT_ONCE
    assert {(tuple(answer.token_ids[: len(tokens)]), len(answer.token_ids)) for answer in whole} == {
        (tuple(tokens), LONGEST["max_tokens"])
    }
    server.wait_for_metric("peftserve_sequences_running", 0)
    server.wait_for_metric("peftserve_kv_cache_usage_ratio", 0)
    server.wait_for_metric("peftserve_requests_total", counted + len(whole))
    server.wait_until(lambda: worker_pid(oracle, server) not in (0, killed), "start another process")
    assert await complete_all(client, model="dates") == (tokens, "dates@1")
    assert server.client.delete("/v1/adapters/dates").status_code == 200
    server.wait_for_metric("peftserve_adapter_bytes", 0)


async def test_a_killed_engine_is_an_error_at_once_on_every_connection(server: Any, client: Any) -> None:
    body = {**LONGEST, "stream": True}
    asking = asyncio.create_task(post_all(client, body))
    await asyncio.to_thread(server.wait_for_metric, "peftserve_sequences_running", AT_ONCE)
    server.kill_engine()
    answers = await asyncio.wait_for(asking, SOON)
    assert all('"engine_dead"' in answer.text for answer in answers)
    assert {answer.status_code for answer in await post_all(client, body)} == {503}
    ready = await asyncio.gather(*(client.http.get("/health") for _ in range(AT_ONCE)))
    assert {answer.status_code for answer in ready} == {503}
    while 200 not in {answer.status_code for answer in ready}:
        ready = await asyncio.gather(*(client.http.get("/health") for _ in range(AT_ONCE)))
    while {answer.status_code for answer in await post_all(client, SHORT)} != {200}:
        await asyncio.sleep(0.1)
