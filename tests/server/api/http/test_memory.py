import asyncio

import pytest

from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.http.memory import FREE, BodyMemory

BODY = b'{"prompt": [5], "max_tokens": 1}'


def test_what_is_free_is_not_counted_and_all_comes_back():
    refused = []
    memory = BodyMemory(1000, lambda: refused.append(1))
    with memory.share(FREE + 5000) as first, memory.share(FREE + 5000) as second:
        first.add(FREE)
        assert memory.taken == 0
        first.add(700)
        second.add(FREE + 300)
        assert memory.taken == 1000
        with pytest.raises(ApiError) as full:
            second.add(1)
        assert (full.value.status_code, full.value.headers) == (503, {"Retry-After": "1"})
        first.close()
        assert memory.taken == 300
        second.add(699)
    assert memory.taken == 0
    assert refused == [1]


def test_what_is_not_kept_is_not_counted():
    memory = BodyMemory(1000)
    with memory.share(FREE + 800) as upload:
        for _ in range(100):
            upload.add(FREE)
        assert memory.taken == 800


async def test_unfinished_bodies_take_no_more_than_there_is(make_server, check_envelope, until):
    async with make_server(limit_body_memory=1 << 20, body_limit=1 << 20) as server:
        halves = []

        async def half():
            yield b"x" * (800 << 10)
            halves.append(1)
            await asyncio.Event().wait()
            yield b""

        held = asyncio.create_task(server.http.post("/v1/completions", content=half(), timeout=60))
        await until(lambda: halves)
        large = BODY + b" " * (900 << 10)
        await _refused(server, large, check_envelope, until)
        small = BODY + b" " * (60 << 10)
        assert (await server.http.post("/v1/completions", content=small)).status_code == 200
        assert 'peftserve_connections_refused_total{reason="body_memory"}' in (await server.http.get("/metrics")).text
        held.cancel()
        await asyncio.wait([held])
        for _ in range(3):
            await _accepted(server, large)


async def _refused(server, body, check_envelope, until):
    async with asyncio.timeout(60):
        while True:  # the half body may not have come yet
            response = await server.http.post("/v1/completions", content=body)
            if response.status_code == 503:
                error = check_envelope(response, 503, "body_memory_full")
                assert response.headers["retry-after"] == "1"
                return error


async def _accepted(server, body):
    """The half body's memory comes back as soon as the server sees that its client is gone."""
    async with asyncio.timeout(60):
        while (await server.http.post("/v1/completions", content=body)).status_code != 200:
            await asyncio.sleep(0.01)
