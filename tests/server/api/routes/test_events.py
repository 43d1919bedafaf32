"""GET /v1/adapters/events: everything that happens, in order, resumed, bounded, and ended with the server."""

import asyncio
import contextlib
import json

import pytest

from peftserve.adapters.events import MAX_WATCHERS
from peftserve.server.api.routes import events as events_module
from peftserve.server.wire.messages import EngineStats


class Stream:
    """The events of one client. comments: what keeps the connection alive."""

    def __init__(self, response):
        self.response = response
        self.lines = response.aiter_lines()
        self.comments = 0

    async def next(self):
        fields = {}
        async with asyncio.timeout(60):
            async for line in self.lines:
                if not line and "data" in fields:
                    assert int(fields["id"]) == fields["data"]["id"]
                    assert fields["event"] == fields["data"]["event"]
                    return fields["data"]
                name, _, value = line.partition(": ")
                self.comments += line.startswith(":")
                fields[name] = json.loads(value) if name == "data" else value
        return None


@contextlib.asynccontextmanager
async def watching(server, last=None):
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    async with server.http.stream("GET", "/v1/adapters/events", headers=headers) as response:
        yield Stream(response)


async def test_everything_is_told_in_order_and_resumed(make_server):
    async with make_server(keep_deleted=60.0) as server, watching(server) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        card = (await server.upload("sql")).json()
        server.engine.publish(EngineStats(device_adapters=[card["digest"]]))
        server.engine.publish(EngineStats(device_adapters=[]))
        await server.http.put("/v1/default-adapter", json={"adapter": "sql"})
        await asyncio.to_thread(server.services.adapters.routes.put, "r", '{"kind": "alias", "target": "base"}')
        await server.http.delete("/v1/adapters/sql")
        await server.http.post("/v1/adapters/sql/restore")
        told = [await stream.next() for _ in range(8)]
        assert [(one["event"], one.get("name"), one.get("version")) for one in told] == [
            ("adapter.added", "sql", 1),
            ("adapter.loaded", "sql", 1),
            ("adapter.unloaded", "sql", 1),
            ("default.changed", "sql", None),
            ("route.changed", "r", None),
            ("adapter.deleted", "sql", 1),
            ("default.changed", None, None),
            ("adapter.restored", "sql", 1),
        ]
        assert told[0]["digest"] == card["digest"]
        assert [one["id"] for one in told] == sorted({one["id"] for one in told})
        async with watching(server, told[4]["id"]) as resumed:
            assert [(await resumed.next())["id"] for _ in range(3)] == [one["id"] for one in told[5:]]
        async with watching(server, 1) as stranger:
            assert [(await stranger.next())["event"] for _ in range(2)] == ["dropped", "adapter.added"]


async def test_watchers_are_bounded_and_leave(server, check_envelope, until):
    log = server.services.owned.life.events
    check_envelope(await server.http.get("/v1/adapters/events", headers={"Last-Event-ID": "x"}), 400)
    async with watching(server):
        await until(lambda: len(log._watchers) == 1)
        others = [log.watch(who="address 127.0.0.1") for _ in range(MAX_WATCHERS - 1)]
        response = await server.http.get("/v1/adapters/events")
        check_envelope(response, 429, "too_many_watchers")
        assert response.headers["retry-after"]
    await until(lambda: len(log._watchers) == MAX_WATCHERS - 1)
    for watcher in others:
        watcher.__exit__()
    assert not log._watchers


async def test_a_silent_stream_is_kept_alive_and_ends_with_the_server(server, until, monkeypatch):
    monkeypatch.setattr(events_module, "HEARTBEAT", 0.01)
    async with watching(server) as stream:
        reading = asyncio.create_task(stream.next())
        await until(lambda: stream.comments > 2)
        server.services.owned.life.events.close()
        assert await reading is None
        async with watching(server) as late:
            assert await late.next() is None


async def test_a_stream_ends_with_its_key(make_server, tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "LOOK", 0.01)
    keys = tmp_path / "keys"
    keys.write_text("theirs\nkept\n")
    async with make_server(api_key_file=keys) as server:
        for key, ends in [("kept", False), ("theirs", True)]:
            server.http.headers["authorization"] = f"Bearer {key}"
            async with watching(server) as stream:
                keys.write_text("kept\n")
                for _ in range(2):  # a file that is seen twice is whole
                    server.services.keys.refresh()
                server.services.adapters.routes.put("r", '{"kind": "alias", "target": "base"}')
                told = await stream.next()
                assert (told is None) if ends else told["event"] == "route.changed"
            keys.write_text("theirs\nkept\n")
            for _ in range(2):
                server.services.keys.refresh()


@pytest.mark.parametrize("fallen_behind", [True, False])
async def test_a_slow_watcher_is_cut_off_and_may_come_back(server, monkeypatch, fallen_behind):
    monkeypatch.setattr("peftserve.adapters.events.QUEUE", 3)
    log = server.services.owned.life.events
    with log.watch() as watcher:
        for i in range(5 if fallen_behind else 3):
            log.tell("route.changed", name=f"r{i}")
        told = await watcher.read(60)
        assert [event.name for event in told][:3] == ["r0", "r1", "r2"]
        assert [event.event for event in told][3:] == (["dropped"] if fallen_behind else [])
        if fallen_behind:
            assert await watcher.read(60) is None
            with log.watch(told[-1].id) as again:
                assert [event.name for event in await again.read(60)] == ["r3", "r4"]
        else:
            assert await watcher.read(0.01) == []
