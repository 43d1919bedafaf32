"""What one who asks can have of the queue and of tokens, and what others have meanwhile, over HTTP."""

import asyncio

import pytest

FILE = """
[[keys]]
name = "limited"
key = "sk-limited"
max_queued = 2
weight = 0.5
[[keys]]
name = "metered"
key = "sk-metered"
tokens_per_minute = 100
[[keys]]
name = "greedy"
key = "sk-greedy"
[[keys]]
name = "ops"
key = "sk-ops"
role = "admin"
"""


@pytest.fixture
async def server(make_server, tmp_path):
    (tmp_path / "keys").write_text(FILE)
    async with make_server(api_key_file=tmp_path / "keys", queue_timeout=7.0) as server:
        yield server


def ask(server, key, path="/v1/completions", **body):
    headers = {"Authorization": f"Bearer sk-{key}"}
    return server.http.post(path, json={"prompt": [5], "max_tokens": 4, **body}, headers=headers)


async def test_one_request_takes_the_queue_and_others_are_served(server, engine, until, check_envelope):
    engine.delay = 60
    greedy = asyncio.create_task(ask(server, "greedy", prompt=[[5]] * 4, n=4))
    await until(lambda: len(engine.running) == 16)
    full = await ask(server, "greedy")
    check_envelope(full, 429, "queue_full")
    assert int(full.headers["retry-after"]) >= 1
    engine.delay = 0
    for key in ("limited", "metered", "ops"):
        assert (await ask(server, key)).status_code == 200
    greedy.cancel()
    await asyncio.gather(greedy, return_exceptions=True)
    await until(lambda: not engine.running)


async def test_a_key_has_its_share_of_places(server, engine, until, check_envelope):
    engine.delay = 60
    waiting = [asyncio.create_task(ask(server, "limited", stream=stream)) for stream in (True, False)]
    await until(lambda: len(engine.running) == 2)
    refused = await ask(server, "limited")
    error = check_envelope(refused, 429, "rate_limit_exceeded")
    assert "2 of the 2" in error["message"]
    assert refused.headers["retry-after"]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    engine.delay = 0
    await until(lambda: not engine.running)
    assert (await ask(server, "limited", n=2)).status_code == 200
    never = await ask(server, "limited", n=3)
    assert "ask for fewer" in check_envelope(never, 400)["message"]
    assert "retry-after" not in never.headers
    metrics = (await server.http.get("/metrics")).text
    assert 'peftserve_tenant_requests_total{outcome="refused",tenant="limited"} 2.0' in metrics


async def test_a_key_has_its_tokens_a_minute(server, check_envelope):
    answer = await ask(server, "metered", prompt=[5] * 40, max_tokens=10)
    assert answer.headers["x-ratelimit-limit-tokens"] == "100"
    vectors = {"input": [5] * 40, "prompt": None, "max_tokens": None}
    vectors = {key: value for key, value in vectors.items() if value is not None}
    headers = {"Authorization": "Bearer sk-metered"}
    answer = await server.http.post("/v1/embeddings", json=vectors, headers=headers)
    assert answer.status_code == 200
    refused = await ask(server, "metered", prompt=[5] * 40, stream=True)
    error = check_envelope(refused, 429, "rate_limit_exceeded")
    assert "100 tokens a minute" in error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert float(refused.headers["x-ratelimit-reset-tokens"].removesuffix("s")) > 1
    assert (await ask(server, "metered", max_tokens=1)).status_code == 200, "what it has left it may use"
    assert "x-ratelimit-limit-tokens" not in (await ask(server, "ops")).headers
    metrics = (await server.http.get("/metrics")).text
    assert 'peftserve_tenant_requests_total{outcome="refused",tenant="metered"} 1.0' in metrics
    assert 'peftserve_tenant_requests_total{outcome="completed",tenant="metered"} 3.0' in metrics
    assert 'peftserve_tenant_tokens_total{kind="prompt",tenant="metered"} 81.0' in metrics


async def test_the_engine_is_told_who_asks(server, engine, check_envelope):
    assert (await ask(server, "limited", priority=3)).status_code == 200
    told = engine.requests[-1]
    assert (told.tenant, told.weight, told.queue_timeout, told.priority) == ("tenant limited", 0.5, 7.0, 3)
    headers = {"Authorization": "Bearer sk-ops"}
    await server.http.post("/v1/embeddings", json={"input": "a", "priority": -2}, headers=headers)
    told = engine.requests[-1]
    assert (told.tenant, told.weight, told.queue_timeout, told.priority) == ("tenant ops", 1.0, 7.0, -2)
    check_envelope(await ask(server, "limited", priority=-1), 403, "forbidden")


async def test_without_keys_an_address_asks(make_server, engine):
    async with make_server() as server:
        await ask(server, "none")
        assert (engine.requests[-1].tenant, engine.requests[-1].queue_timeout) == ("address 127.0.0.1", None)
        assert engine.requests[-1].salt == ""
