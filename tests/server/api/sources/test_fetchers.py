"""Sources over HTTP, as clients name them: every type on its route, every failure a 4xx with nothing left behind."""

import asyncio
import threading

import pytest

from peftserve.server.api.sources import download, fetchers
from peftserve.server.api.tenancy.tenant import Tenant

ALL = frozenset({"hub", "s3", "gs", "http"})
COMMIT = "c0ffee" + "0" * 34


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)


@pytest.fixture
def here(make_server):
    """A server that may fetch from every source on this machine."""

    def make(**fields):
        allowed = {"allow_adapter_sources": ALL, "allow_source_hosts": ("127.0.0.1",), "allow_private_sources": True}
        return make_server(**{**allowed, **fields})

    return make


def staging(server):
    return list((server.config.state_dir / "staging").iterdir())


async def add(server, kind, uri, **source):
    return await server.http.post("/v1/adapters", json={"name": "sql", "source": {"type": kind, "uri": uri, **source}})


async def test_every_type_gives_a_version_with_its_origin(here, hub, site, s3, adapter_bytes, tmp_path):
    hub.add("/sub", adapter_bytes())
    hub.token = "hf_secret"
    (tmp_path / "token").write_text("hf_secret")
    site.add("/team/sql", adapter_bytes())
    s3.add("team/sql", adapter_bytes())
    async with here(hub_token_file=tmp_path / "token") as server:
        cards = [
            (await add(server, "hub", "owner/name/sub", revision="main")).json(),
            (await add(server, "s3", "s3://adapters/team/sql")).json(),
            (await add(server, "http", f"{site.url}/team/sql?sig=secret")).json(),
        ]
        assert [card["version"] for card in cards] == [1, 2, 3]
        assert len({card["digest"] for card in cards}) == 1
        source = {"kind": "source", "type": "hub", "uri": "owner/name/sub"}
        assert cards[0]["origin"] == {**source, "revision": "main", "resolved": COMMIT}
        assert (await server.http.get("/v1/adapters/sql@1")).json()["origin"] == cards[0]["origin"]
        assert "secret" not in str(cards)
        assert staging(server) == []


async def test_all_requests_take_turns_at_the_same_places(here):
    async with here() as server:
        seen = [server.services.seen_by(Tenant(name)) for name in "ab"]
        assert seen[0].sources is seen[1].sources is server.services.sources


async def test_vllms_route_takes_places_too(here, hub, site, s3, adapter_bytes, tmp_path, check_envelope):
    hub.add("", adapter_bytes())
    site.add("/sql", adapter_bytes())
    s3.add("sql", adapter_bytes())
    folder = tmp_path / "sql"
    folder.mkdir()
    for name, content in adapter_bytes().items():
        (folder / name).write_bytes(content)
    async with here(allow_adapter_paths=(tmp_path,)) as server:
        places = ["owner/name", "huggingface://owner/name", "s3://adapters/sql", f"{site.url}/sql", str(folder)]
        for i, place in enumerate(places):
            body = {"lora_name": f"a{i}", "lora_path": place}
            answer = await server.http.post("/v1/load_lora_adapter", json=body)
            assert (answer.status_code, answer.text) == (200, f"Success: LoRA adapter 'a{i}' added successfully.")
        for place in ("owner/absent", "s3://adapters/absent", f"{site.url}/absent", f"{folder}/absent"):
            body = {"lora_name": "x", "lora_path": place}
            check_envelope(await server.http.post("/v1/load_lora_adapter", json=body), 404, "adapter_not_found")
        for place in ("ftp://host/a", "http://other.example/a", "s3://adapters/a/../b"):
            body = {"lora_name": "x", "lora_path": place}
            check_envelope(await server.http.post("/v1/load_lora_adapter", json=body), 400, "source_failed")
    async with here(allow_adapter_sources=frozenset({"s3"}), allow_adapter_paths=(tmp_path,)) as server:
        for place in ("owner/name", "hub://owner/name", f"{site.url}/sql"):
            answer = await server.http.post("/v1/load_lora_adapter", json={"lora_name": "y", "lora_path": place})
            assert answer.status_code in (400, 404)


async def test_failures_are_told_and_leave_nothing(here, site, adapter_bytes, check_envelope):
    site.add("/sql", adapter_bytes())
    site.add("/large", {**adapter_bytes(), "adapter_model.safetensors": bytes(3 << 20)})
    site.add("/bad", {**adapter_bytes(), "adapter_model.safetensors": b"nonsense"})
    site.faults["/sql/adapter_model.safetensors"] = [503] * 4
    async with here(upload_limit=1 << 20) as server:
        cases = {"/sql": (400, "source_failed"), "/absent": (400, "source_failed")}
        cases |= {"/large": (413, "adapter_too_large"), "/bad": (400, "invalid_adapter")}
        for path, (status, code) in cases.items():
            check_envelope(await add(server, "http", site.url + path), status, code)
        check_envelope(await add(server, "ftp", "ftp://host/a"), 400)
        check_envelope(await add(server, "http", ""), 400)
        check_envelope(await add(server, "http", "http://" + "a" * 5000), 400)
        body = {"name": "a b", "source": {"type": "http", "uri": f"{site.url}/sql"}}
        check_envelope(await server.http.post("/v1/adapters", json=body), 400)
        assert staging(server) == []
        assert (await server.http.get("/v1/adapters")).json()["data"] == []
        assert (await add(server, "http", f"{site.url}/sql")).status_code == 201


async def test_a_client_that_leaves_ends_its_fetch(here, site, adapter_bytes, until):
    site.add("/sql", adapter_bytes())
    held = threading.Event()
    site.faults["/sql/adapter_model.safetensors"] = [held]
    async with here() as server:
        asking = asyncio.create_task(add(server, "http", f"{site.url}/sql"))
        await until(lambda: len(site.asked) == 2)
        assert staging(server)
        asking.cancel()
        await until(lambda: not staging(server))
        held.set()
        assert (await server.http.get("/v1/adapters")).json()["data"] == []


async def test_fetches_have_a_time_and_a_number(here, site, adapter_bytes, check_envelope, monkeypatch, until):
    monkeypatch.setattr(fetchers, "MAX_FETCHES", 1)
    site.add("/sql", adapter_bytes())
    held = threading.Event()
    site.faults["/sql/adapter_config.json"] = [held]
    async with here(timeout_source=3.0) as server:
        first = asyncio.create_task(add(server, "http", f"{site.url}/sql"))
        await until(lambda: len(site.asked) == 1)
        second = asyncio.create_task(add(server, "http", f"{site.url}/sql"))
        assert "longer than 3 s" in check_envelope(await first, 400, "source_failed")["message"]
        assert (await second).status_code == 201
        held.set()
