"""The server as its users have it: real processes, real HTTP, many clients at once, and PEFT's tokens."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(world: Any, device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with few slots, small steps and few pages. Each test deletes the adapters that it uploads."""
    folder = tmp_path_factory.mktemp("server")
    flags = ("--device", device, "--max-loras", "4", "--max-batch-tokens", "64", "--kv-cache-tokens", "1024")
    server = world.oracle.RunningServer.start(world.model, folder / "state", folder / "log", *flags)
    yield server
    assert server.stop() == 0


async def test_a_mixed_workload_of_concurrent_clients(world: Any, server: Any) -> None:
    """48 requests over eight adapters, the base and mixtures, by two clients, streaming and not."""
    for adapter in world.adapters:
        assert server.upload(adapter.name, adapter).status_code == 201
    requests = world.oracle.random_workload(world.reference, world.adapters, seed=5)
    async with world.connect(server) as client:
        asking = (_ask(world, client, i, request) for i, request in enumerate(requests))
        answers = await asyncio.gather(*asking)
    tokenizer = AutoTokenizer.from_pretrained(world.model)
    for request, answer in zip(requests, answers, strict=True):
        assert answer.token_ids == request.token_ids
        assert answer.text == tokenizer.decode(request.token_ids, skip_special_tokens=True)
        assert answer.finish_reason == request.finish_reason
    _delete(server, world.adapters)


async def _ask(world: Any, client: Any, i: int, request: Any) -> Any:
    await asyncio.sleep(request.arrival / 50)
    body = _body(world, request)
    if i % 3 == 0:
        return await client.complete_by_openai(body, stream=i % 2 == 0)
    return await (client.stream(body) if i % 2 == 0 else client.complete(body))


def _body(world: Any, request: Any) -> dict[str, Any]:
    """Return the body of an oracle's request."""
    body = {
        "model": world.model.name,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "ignore_eos": request.ignore_eos,
        "return_token_ids": True,
    }
    match request.mixture:
        case ((adapter, 1.0),):
            body["model"] = adapter.name
        case (_, *_):
            body["adapters"] = [{"name": adapter.name, "weight": weight} for adapter, weight in request.mixture]
    return body


async def test_clients_that_leave_free_what_they_held(world: Any, server: Any) -> None:
    """In the middle of a stream and while they wait for a whole answer; those that stay get theirs."""
    for adapter in world.adapters[:3]:
        assert server.upload(adapter.name, adapter).status_code == 201
    steps = server.metric("peftserve_steps_total")
    prompt, adapter = [20, 30, 40], world.adapters[0]
    long = {"prompt": prompt, "max_tokens": 240, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    async with world.connect(server) as client:
        models = [adapter.name for adapter in world.adapters[:3]]
        asking = [
            asyncio.create_task((client.stream if i % 2 else client.complete)({**long, "model": models[i % 3]}))
            for i in range(30)
        ]
        await asyncio.to_thread(
            server.wait_until, lambda: server.metric("peftserve_steps_total") > steps + 20, "get going"
        )
        for task in asking[1:]:
            task.cancel()
        await asyncio.wait(asking[1:])
        answer = await asking[0]
    sure = world.reference.sure(prompt, 240, ((adapter, 1.0),))
    assert answer.token_ids[: len(sure)] == sure
    server.wait_for_metric("peftserve_sequences_running", 0)
    assert server.metric("peftserve_sequences_waiting") == 0
    assert server.metric("peftserve_kv_cache_usage_ratio") == 0
    _delete(server, world.adapters[:3])


def _delete(server: Any, adapters: list[Path]) -> None:
    """Delete adapters, and wait until all memory that they took is free."""
    for adapter in adapters:
        assert server.client.delete(f"/v1/adapters/{adapter.name}").status_code == 200
    server.wait_for_metric("peftserve_adapter_bytes", 0)
