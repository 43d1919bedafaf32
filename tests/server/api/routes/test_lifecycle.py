"""Settings, deletions with a way back, quotas, pins and loading, over HTTP."""

import asyncio
import os

import pytest
from msgspec.structs import replace

from peftserve.server.wire.messages import EngineStats


async def _patch(server, name="sql", **fields):
    return await server.http.patch(f"/v1/adapters/{name}", json=fields)


async def _names(server, query=""):
    body = (await server.http.get(f"/v1/adapters{query}")).json()
    return [card["name"] for card in body["data"]], body["has_more"]


async def test_settings_come_with_an_upload_and_change_by_merge_patches(server, check_envelope):
    settings = {"tags": "prod, eu", "metadata": '{"team": {"id": 7, "name": "search"}}', "ttl": "3600"}
    card = (await server.upload("sql", fields=settings)).json()
    assert (card["tags"], card["metadata"]["team"]["id"], card["ttl"]) == (["prod", "eu"], 7, 3600)
    assert card["expires_at"] == pytest.approx(card["created"] + 3600, abs=2)
    assert "pinned" not in card
    again = (await server.upload("sql", rank=4)).json()
    assert (again["version"], again["tags"]) == (2, ["prod", "eu"]), "a new version has its name's settings"
    card = (await _patch(server, metadata={"team": {"name": None}, "since": "May"}, ttl=None)).json()
    assert card["metadata"] == {"team": {"id": 7}, "since": "May"}
    assert card["tags"] == ["prod", "eu"]
    assert not {"ttl", "expires_at"} & card.keys()
    for wrong, param in (
        ({"ttl": -1}, "ttl"),
        ({"tags": ["a" * 65]}, "tags"),
        ({"tags": ["a\nb"]}, "tags"),
        ({"metadata": {"x": "y" * (17 << 10)}}, "metadata"),
        ({"pinned": "maybe"}, "pinned"),
    ):
        assert check_envelope(await _patch(server, **wrong), 400)["param"] == param
        assert (await server.http.get("/v1/adapters/sql")).json() == card, "nothing has changed"
    check_envelope(await _patch(server, "nobody", tags=["x"]), 404, "model_not_found")
    check_envelope(await _patch(server, "sql@1", tags=["x"]), 400)
    check_envelope(await server.upload("new", fields={"metadata": "[1]"}), 400)
    check_envelope(await server.upload("new", fields={"ttl": "soon"}), 400)
    for tags in ("[" * 8000, "[1", '["a"] x'):
        assert check_envelope(await server.upload("new", fields={"tags": tags}), 400)["param"] == "tags"
    check_envelope(await server.http.get("/v1/adapters/new"), 404)


async def test_lists_are_filtered_and_paged(server):
    for i in range(6):
        await server.upload(f"{'ab'[i % 2]}{i}", rank=i + 1, fields={"tags": "even" if i % 2 == 0 else "odd,late"})
    digest = (await server.http.get("/v1/adapters/b3")).json()["digest"]
    server.engine.publish(EngineStats(device_adapters=[digest]))
    assert await _names(server) == (["a0", "a2", "a4", "b1", "b3", "b5"], False)
    assert await _names(server, "?tag=odd&tag=late&limit=2") == (["b1", "b3"], True)
    assert await _names(server, "?tag=odd&limit=2&after=b3") == (["b5"], False)
    assert await _names(server, "?tag=odd&tag=even") == ([], False)
    assert await _names(server, "?name_prefix=a&limit=3") == (["a0", "a2", "a4"], False)
    assert await _names(server, "?method=LORA&state=device") == (["b3"], False)
    assert (await _names(server, "?state=disk"))[0] == ["a0", "a2", "a4", "b1", "b5"]
    assert await _names(server, "?method=IA3") == ([], False)
    assert (await server.http.get("/v1/adapters?state=moon")).status_code == 400


async def test_what_is_deleted_comes_back_with_its_numbers(make_server, check_envelope, until):
    async with make_server(keep_deleted=60.0) as server:
        first = (await server.upload("sql", fields={"tags": "prod"})).json()
        second = (await server.upload("sql", rank=4)).json()
        assert (await server.http.delete("/v1/adapters/sql")).status_code == 200
        await until(lambda: {first["digest"], second["digest"]} <= set(server.engine.released))
        check_envelope(await server.http.get("/v1/adapters/sql"), 404)
        assert len(os.listdir(server.config.state_dir / "adapters")) == 2, "their files stay"
    async with make_server(keep_deleted=60.0) as server:  # also behind a restart
        restored = (await server.http.post("/v1/adapters/sql@2/restore")).json()["data"]
        assert [(card["version"], card["digest"]) for card in restored] == [(2, second["digest"])]
        assert (await server.http.get("/v1/adapters/sql")).json()["tags"] == ["prod"]
        assert (await server.upload("sql", rank=2)).json()["version"] == 3, "no number is used twice"
        await server.http.post("/v1/adapters/sql/restore")
        assert (await server.http.get("/v1/adapters/sql@1")).json()["digest"] == first["digest"]
        check_envelope(await server.http.post("/v1/adapters/sql/restore"), 404, "model_not_found")
        await server.http.delete("/v1/adapters/sql")
        server.services.adapters.routes.put("sql", '{"kind": "alias", "target": "base"}')
        check_envelope(await server.http.post("/v1/adapters/sql/restore"), 409, "adapter_conflict")
        server.services.adapters.routes.delete("sql")
        assert (await server.http.delete("/v1/adapters/sql?purge=true")).status_code == 200
        await until(lambda: os.listdir(server.config.state_dir / "adapters") == [])
        assert os.listdir(server.config.state_dir / "settings") == []
        check_envelope(await server.http.post("/v1/adapters/sql/restore"), 404)
        check_envelope(await server.http.delete("/v1/adapters/sql?purge=true"), 404)


async def test_each_key_has_its_quota(make_server, check_envelope, until):
    async with make_server(api_keys=("one", "two"), max_adapters_per_key=2, max_adapter_bytes_per_key=3000) as server:
        server.http.headers["Authorization"] = "Bearer one"
        for name in ("a", "b", "a"):
            assert (await server.upload(name, rank=len(name) + 1)).status_code == 201
        error = check_envelope(await server.upload("c"), 403, "quota_exceeded")
        assert "3 adapters" in error["message"]
        assert "2 are allowed" in error["message"]
        await server.http.delete("/v1/adapters/b")
        error = check_envelope(await server.upload("a", width=40), 403, "quota_exceeded")
        assert "3000 are allowed" in error["message"]
        await until(lambda: len(os.listdir(server.config.state_dir / "adapters")) == 1)  # nothing of what is refused
        server.http.headers["Authorization"] = "Bearer two"
        assert (await server.upload("c")).status_code == 201


async def test_a_pin_is_kept_by_the_engine_or_refused(server, check_envelope, until):
    cards = {name: (await server.upload(name, rank=r + 1)).json() for r, name in enumerate("abc")}
    assert (await _patch(server, "a", pinned=True)).json()["pinned"] is True
    assert (await _patch(server, "b", pinned=True)).json()["pinned"] is True
    check_envelope(await _patch(server, "c", pinned=True), 413, "adapter_too_large")
    assert "pinned" not in (await server.http.get("/v1/adapters/c")).json()
    newest = (await server.upload("a", rank=9)).json()
    await until(lambda: server.engine.pinned == [newest["digest"], cards["b"]["digest"]])
    await _patch(server, "b", pinned=False)
    await until(lambda: server.engine.pinned == [newest["digest"]])
    await server.http.delete("/v1/adapters/a")
    await until(lambda: server.engine.pinned == [])


async def test_a_pin_that_found_no_room_is_kept_when_there_is_some(server, check_envelope, until):
    for rank, name in enumerate("abc"):
        await server.upload(name, rank=rank + 1, fields={"pinned": "true"})
    await until(lambda: len(server.engine.pinned) == 2)
    check_envelope(await _patch(server, "c", pinned=True), 413, "adapter_too_large")
    await server.http.delete("/v1/adapters/b")
    left = [(await server.http.get(f"/v1/adapters/{name}")).json()["digest"] for name in "ac"]
    await until(lambda: sorted(server.engine.pinned) == sorted(left))
    assert (await _patch(server, "c", pinned=True)).status_code == 200


async def test_a_new_engine_is_told_of_a_pin_that_is_asked_for_again(server, until):
    card = (await server.upload("a", fields={"pinned": "true"})).json()
    await until(lambda: server.engine.pinned == [card["digest"]])
    server.engine.pinned, server.engine.info = [], replace(server.engine.info)  # as another engine says it
    assert (await _patch(server, "a", pinned=True)).status_code == 200
    assert server.engine.pinned == [card["digest"]]


async def test_pins_and_times_hold_over_a_restart(make_server, until):
    async with make_server() as server:
        card = (await server.upload("a", fields={"pinned": "true"})).json()
        await server.upload("b", rank=2, fields={"ttl": "0.5"})
        server.engine.pinned = []
    async with make_server() as server:
        await until(lambda: server.engine.pinned == [card["digest"]])
        registry = server.services.adapters.registry
        await until(lambda: registry.find("b") is None)
        assert registry.find("a") is not None


async def test_a_route_keeps_what_its_time_would_delete(server, until):
    await server.upload("a")
    server.services.adapters.routes.put("r", '{"kind": "alias", "target": "a"}')
    await _patch(server, "a", ttl=0.01)
    await server.upload("b", rank=2, fields={"ttl": "0.02"})
    registry = server.services.adapters.registry
    await until(lambda: registry.find("b") is None)
    assert registry.find("a") is not None
    server.services.adapters.routes.delete("r")
    await until(lambda: registry.find("a") is None)


async def test_an_adapter_is_loaded_ahead_of_use(server, check_envelope):
    old = (await server.upload("sql")).json()
    new = (await server.upload("sql", rank=4)).json()
    assert (await server.http.post("/v1/adapters/sql/load")).json() == {**new, "state": "device"}
    assert (await server.http.post("/v1/adapters/sql@1/load")).json()["digest"] == old["digest"]
    assert server.engine.loaded == [new["digest"], old["digest"]]
    server.engine.level = "host"
    response = await server.http.post("/v1/adapters/sql/load")
    check_envelope(response, 503, "no_room")
    assert response.headers["retry-after"]
    check_envelope(await server.http.post("/v1/adapters/nobody/load"), 404, "model_not_found")
    assert server.services.adapters.leases.counts() == {}


async def test_older_versions_go_once_nothing_names_or_uses_them(make_server, until):
    async with make_server(keep_versions=2, keep_deleted=60.0) as server:
        registry, adapters = server.services.adapters.registry, server.config.state_dir / "adapters"

        def versions():
            return [record.version for record in registry.versions("sql")]

        await server.upload("sql", rank=1)
        server.engine.going.clear()
        running = server.openai.completions.create(model="sql", prompt="ab", max_tokens=3)
        task = asyncio.create_task(running)
        await until(lambda: server.engine.running)
        for rank in (2, 3, 4):
            await server.upload("sql", rank=rank)
        await until(lambda: versions() == [1, 3, 4])
        server.engine.going.set()
        assert (await task).model == "sql"
        await until(lambda: versions() == [3, 4])
        await until(lambda: len(os.listdir(adapters)) == 2)
        await server.http.put("/v1/default-adapter", json={"adapter": "sql@3"})
        server.services.adapters.routes.put("r", '{"kind": "alias", "target": "sql@4"}')
        for rank in (5, 6, 7):
            await server.upload("sql", rank=rank)
        await until(lambda: versions() == [3, 4, 6, 7])
        server.services.adapters.routes.delete("r")
        await until(lambda: versions() == [3, 6, 7])
        await server.http.put("/v1/default-adapter", json={"adapter": None})
        await until(lambda: versions() == [6, 7])
        await until(lambda: len(os.listdir(adapters)) == 2)
