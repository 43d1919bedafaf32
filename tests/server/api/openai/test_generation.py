"""What a request of many sequences costs the others: made once, and begun in turns."""

import asyncio

import pytest

from peftserve.server.api.openai import generation
from peftserve.server.api.openai.generation import TURN, Turns


@pytest.fixture
async def wide(make_server):
    async with make_server(max_queue=2000) as server:
        yield server


async def test_the_table_of_stop_strings_is_made_once_a_request(wide, monkeypatch):
    made, table = [], generation.StopTable

    def watched(stops):
        made.append(stops)
        return table(stops)

    monkeypatch.setattr(generation, "StopTable", watched)
    stops = ["brown", *("q" * 1000 + str(i) for i in range(15))]
    body = {"prompt": ["quick brown fox"] * 8, "n": 16, "stop": stops, "max_tokens": 60, "seed": 0}
    response = await wide.http.post("/v1/completions", json=body)
    assert made == [stops]
    choices = response.json()["choices"]
    assert len(choices) == 128
    assert {choice["stop_reason"] for choice in choices} == {"brown"}
    assert choices[0]["text"] == "quick "


async def test_a_thousand_sequences_begin_in_several_turns(wide, engine, monkeypatch):
    loop, batches, submit = asyncio.get_running_loop(), [[]], engine.submit

    def watched(request, sink):
        if not batches[-1]:
            loop.call_soon(batches.append, [])  # others of the loop have their turn
        batches[-1].append(request.request_id)
        submit(request, sink)

    monkeypatch.setattr(engine, "submit", watched)
    body = {"prompt": [[5, 6, 7]] * 8, "n": 128, "max_tokens": 2}
    response = await wide.http.post("/v1/completions", json=body)
    assert len(response.json()["choices"]) == 1024
    assert sum(map(len, batches)) == 1024
    assert max(map(len, batches)) < 256


async def test_an_engine_that_dies_half_way_leaves_nothing_running(wide, engine, monkeypatch, check_envelope):
    submit = engine.submit

    def dying(request, sink):
        if len(engine.requests) == 600:
            engine.die()
        submit(request, sink)

    monkeypatch.setattr(engine, "submit", dying)
    body = {"prompt": [[5, 6, 7]] * 8, "n": 128, "max_tokens": 100}
    check_envelope(await wide.http.post("/v1/completions", json=body), 503, "engine_dead")
    assert not engine.running
    assert wide.services.admission.in_flight == 0


async def test_others_have_their_turn_when_the_time_is_spent_and_not_before():
    seen = []
    turns = Turns()
    for step in range(10):
        asyncio.get_running_loop().call_soon(seen.append, step)
        await turns.spend(TURN // 4)
        seen.append("x")
    assert seen[:6] == ["x", "x", "x", "x", 0, 1]
    assert seen.count("x") == 10
