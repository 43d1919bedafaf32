"""The server as its users have it: real processes, real HTTP, many clients at once, and PEFT's tokens."""

import asyncio
from collections.abc import Callable
from typing import Any

from transformers import AutoTokenizer


async def test_a_mixed_workload_of_concurrent_clients(world: Any, serve: Callable[..., Any]) -> None:
    """64 requests over eight adapters, the base and mixtures, by two clients, streaming and not, with few slots."""
    server = serve("--max-loras", "4", "--max-batch-tokens", "64", "--kv-cache-tokens", "1024")
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
    assert server.stop() == 0


async def _ask(world: Any, client: Any, i: int, request: Any) -> Any:
    await asyncio.sleep(request.arrival / 50)
    body = _body(world, request)
    if i % 3 == 0:
        return await client.complete_by_openai(body, stream=i % 2 == 0)
    return await (client.stream(body) if i % 2 == 0 else client.complete(body))


def _body(world: Any, request: Any) -> dict[str, Any]:
    """An oracle's request as JSON."""
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


async def test_clients_that_leave_free_what_they_held(world: Any, serve: Callable[..., Any]) -> None:
    """In the middle of a stream and while they wait for a whole answer; those that stay get theirs."""
    server = serve("--max-loras", "2")
    for adapter in world.adapters[:3]:
        assert server.upload(adapter.name, adapter).status_code == 201
    prompt, adapter = [20, 30, 40], world.adapters[0]
    long = {"prompt": prompt, "max_tokens": 240, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    async with world.connect(server) as client:
        models = [adapter.name for adapter in world.adapters[:3]]
        asking = [
            asyncio.create_task((client.stream if i % 2 else client.complete)({**long, "model": models[i % 3]}))
            for i in range(30)
        ]
        await asyncio.to_thread(server.wait_until, lambda: server.metric("peftserve_steps_total") > 20, "get going")
        for task in asking[1:]:
            task.cancel()
        await asyncio.wait(asking[1:])
        answer = await asking[0]
    sure = world.reference.sure(prompt, 240, ((adapter, 1.0),))
    assert answer.token_ids[: len(sure)] == sure
    server.wait_for_metric("peftserve_sequences_running", 0)
    assert server.metric("peftserve_sequences_waiting") == 0
    assert server.metric("peftserve_kv_cache_usage_ratio") == 0
    for adapter in world.adapters[:3]:
        assert server.client.delete(f"/v1/adapters/{adapter.name}").status_code == 200
    server.wait_for_metric("peftserve_adapter_bytes", 0)
