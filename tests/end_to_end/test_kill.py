"""kill -9: of the engine under load, and of the whole server in the middle of uploads."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

STREAMS = 64
UPLOADERS = 4
SOON = 45.0
"""Seconds within which an error must come, before --engine-timeout. On an idle machine it takes less than 2."""


async def test_kills_lose_nothing_acknowledged_and_are_errors_at_once(world: Any, serve: Callable[..., Any]) -> None:
    """In the middle of uploads, twice on one state folder: what was acknowledged is there, and all that is there is
    whole. In the end of the engine alone, while requests run on the default: another takes its place, and all is there.
    """
    tried: dict[str, Path] = {}
    again = serve()
    for generation in range(2):
        acknowledged, default = await _upload_until_killed(world, again, tried, generation)
        again = serve()
        cards = again.client.get("/v1/adapters").json()["data"]
        names = {card["name"] for card in cards}
        assert acknowledged <= names <= tried.keys()
        assert again.client.get("/v1/default-adapter").json()["adapter"] >= default
        assert {folder.name for folder in (again.state / "adapters").iterdir()} == {card["digest"] for card in cards}
        assert list((again.state / "staging").iterdir()) == []
        await _check_adapters(world, again, {name: tried[name] for name in names})
    await _kill_the_engine(world, again)
    again.wait_until(again._is_ready, "have another engine")
    await _check_adapters(world, again, {name: tried[name] for name in names})
    assert again.client.get("/v1/default-adapter").json()["adapter"] >= default


async def _upload_until_killed(
    world: Any, server: Any, tried: dict[str, Path], generation: int
) -> tuple[set[str], str]:
    """Run four uploaders, the first of which makes each of its adapters the default, and kill the server under them.

    Returns the acknowledged names, and the newest acknowledged default. Notes each name and its adapter in `tried`.
    """
    acknowledged: set[str] = set()
    defaults: list[str] = []

    async def upload(seed: int) -> None:
        for i in range(1000):
            name, adapter = f"{generation}-{i:03}-{seed}", world.adapters[(i + seed) % len(world.adapters)]
            tried[name] = adapter
            files = world.oracle.adapter_files(adapter, b" " * (4 * (1000 * generation + i) + seed))
            response = await client.http.post("/v1/adapters", data={"name": name}, files=files)
            assert response.status_code == 201, response.text
            acknowledged.add(name)
            if seed == 0:
                switched = await client.http.put("/v1/default-adapter", json={"adapter": name})
                assert switched.status_code == 200
                defaults.append(name)

    async with world.connect(server) as client:
        uploads = [asyncio.create_task(upload(seed)) for seed in range(UPLOADERS)]
        while len(acknowledged) < 12 + generation or not defaults:
            await asyncio.sleep(0.001)
        server.kill()
        results = await asyncio.gather(*uploads, return_exceptions=True)
    assert all(isinstance(result, httpx.TransportError) for result in results), results
    return acknowledged, defaults[-1]


async def _check_adapters(world: Any, server: Any, adapters: dict[str, Path]) -> None:
    """Ask each name for the tokens of its adapter."""
    options = {"prompt": [20, 30, 40], "max_tokens": 4, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    async with world.connect(server) as client:
        answers = await asyncio.gather(*(client.complete({"model": name, **options}) for name in adapters))
    for adapter, answer in zip(adapters.values(), answers, strict=True):
        sure = world.reference.sure(options["prompt"], 4, ((adapter, 1.0),))
        assert answer.token_ids[: len(sure)] == sure
        assert len(answer.token_ids) == 4


async def _kill_the_engine(world: Any, server: Any) -> None:
    """Kill the engine. Open requests, streamed or not, new ones and the readiness probe get an error at once."""
    body = {"model": "default", "prompt": [20, 30, 40], "max_tokens": 240, "ignore_eos": True}
    streamed = [i % 2 == 0 for i in range(STREAMS)]
    async with world.connect(server) as client:
        asking = [
            asyncio.create_task(client.http.post("/v1/completions", json={**body, "stream": stream}))
            for stream in streamed
        ]
        await asyncio.to_thread(server.wait_for_metric, "peftserve_sequences_running", STREAMS)
        server.kill_engine()
        late = await client.http.post("/v1/completions", json=body)  # before another engine can be there
        ready = await client.http.get("/health/ready")
        answers = await asyncio.wait_for(asyncio.gather(*asking), SOON)
    for answer, stream in zip(answers, streamed, strict=True):  # a stream of which nothing was sent is none
        assert answer.status_code in ((200, 503) if stream else (503,))
    assert all(_error_message(answer.text) for answer in answers)
    assert (late.status_code, ready.status_code) == (503, 503)


def _error_message(text: str) -> str:
    """Return the error of an answer, or of the one event in a stream that is an error."""
    lines = [line.removeprefix("data: ") for line in text.splitlines()]
    (error,) = [json.loads(line)["error"] for line in lines if line.startswith('{"error"')]
    return str(error["message"])
