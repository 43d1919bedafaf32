import asyncio
import re

import pytest


@pytest.fixture
async def split(server):
    """The server with a split of which `shadow` gets copies; returns the digests by name."""
    digests = {}
    for name, rank in (("sql", 4), ("shadow", 8)):
        digests[name] = (await server.upload(name, rank)).json()["digest"]
    body = {"kind": "split", "arms": [{"target": "sql", "weight": 1}], "shadow": "shadow"}
    assert (await server.http.put("/v1/routes/r", json=body)).status_code == 201
    return digests


async def ask(server, **fields):
    body = {"model": "r", "prompt": "the quick", "max_tokens": 2, "ignore_eos": True, "cache_salt": "salt", **fields}
    return await server.http.post("/v1/completions", json=body)


async def outcomes(server):
    text = (await server.http.get("/metrics")).text
    found = re.findall(r'^peftserve_shadow_requests_total\{outcome="(\w+)",route="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {(route, outcome): float(count) for outcome, route, count in found}


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"seed": 3, "logprobs": 1}])
async def test_the_copy_is_of_the_shadow_s_adapter_and_the_answer_is_not(server, split, fields, until):
    answer = await ask(server, **fields)
    assert answer.headers["x-peftserve-adapter"] == "sql@1"
    await until(lambda: len(server.engine.requests) == 2 and not server.engine.running)
    mine, copied = server.engine.requests
    assert [a.digest for a in mine.adapters] == [split["sql"]]
    assert [a.digest for a in copied.adapters] == [split["shadow"]]
    assert mine.sampling == copied.sampling
    assert (mine.prompt_token_ids, mine.salt) == (copied.prompt_token_ids, copied.salt)
    await until(lambda: server.services.admission.in_flight == 0)
    assert await outcomes(server) == {("r", "completed"): 1.0}
    text = (await server.http.get("/metrics")).text
    assert 'peftserve_requests_total{outcome="completed"} 1.0' in text
    assert "peftserve_generation_tokens_total 2.0" in text
    assert not server.services.adapters.leases.counts()


async def test_it_never_runs_beside_too_many_and_gives_way(server, split, until):
    server.engine.delay = 0.05  # of a copy
    answered = asyncio.create_task(ask(server, n=2))
    await until(lambda: len(server.engine.requests) == 2)  # 2 of 4 in the batch: 2 more would be all
    await answered
    assert await outcomes(server) == {("r", "skipped"): 1.0}
    await ask(server, max_tokens=1)
    await until(lambda: server.services.admission.in_flight == 0)
    assert (await outcomes(server))["r", "completed"] == 1.0
    server.engine.delay = 0.5
    slow = asyncio.create_task(ask(server))
    await until(lambda: len(server.engine.requests) == 6)
    others = [asyncio.create_task(ask(server, model="base")) for _ in range(3)]
    await until(lambda: len(server.engine.aborted) > 0)
    server.engine.delay = 0
    assert [one.status_code for one in await asyncio.gather(slow, *others)] == [200] * 4
    assert (await outcomes(server))["r", "aborted"] == 1.0
    assert server.services.admission.in_flight == 0


async def test_a_queue_in_the_engine_is_no_time_for_copies(server, split):
    stats = type(server.engine.stats)(num_waiting=1)
    server.engine.publish(stats)
    await ask(server)
    assert await outcomes(server) == {("r", "skipped"): 1.0}
    assert len(server.engine.requests) == 1


async def test_what_a_shadow_cannot_do_is_skipped(server, split, until):
    assert (await server.http.delete("/v1/adapters/shadow?force=true")).status_code == 200
    assert (await ask(server)).status_code == 200
    server.engine.facts = {"virtual_tokens": 126, "primitives": {"kv_prefix": 1}}
    await server.upload("shadow", 2)
    assert (await ask(server)).status_code == 200
    await until(lambda: server.services.admission.in_flight == 0)
    assert await outcomes(server) == {("r", "skipped"): 2.0}
    assert len(server.engine.requests) == 2


async def test_draining_gives_copies_up(server, split, until):
    server.engine.delay = 0.3
    asking = asyncio.create_task(ask(server, max_tokens=1))
    await until(lambda: len(server.engine.requests) == 2)
    server.services.drain()
    await until(lambda: server.engine.aborted)
    assert (await asking).status_code == 200
    await server.services.admission.idle()
    assert await outcomes(server) == {("r", "aborted"): 1.0}


async def test_it_takes_nothing_of_the_share_of_who_asks(make_server, engine, tmp_path, until):
    keys = tmp_path / "keys"
    keys.write_text('[[keys]]\nname = "acme"\nkey = "sk"\nmax_queued = 2\nrole = "admin"\n')
    async with make_server(api_key_file=keys) as server:
        server.http.headers["Authorization"] = "Bearer sk"
        for name, rank in (("sql", 4), ("shadow", 8)):
            await server.upload(name, rank)
        body = {"kind": "split", "arms": [{"target": "sql", "weight": 1}], "shadow": "shadow"}
        await server.http.put("/v1/routes/r", json=body)
        engine.going.clear()
        first = asyncio.create_task(ask(server))
        await until(lambda: len(engine.requests) == 2)
        second = asyncio.create_task(ask(server, model="base"))
        await until(lambda: len(engine.requests) == 3 or second.done())
        engine.going.set()
        assert ((await first).status_code, (await second).status_code) == (200, 200)
        await until(lambda: server.services.admission.in_flight == 0)
