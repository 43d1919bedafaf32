"""Two API processes in one event loop: the first behind its private socket, the other behind a port."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

import httpx
import pytest

from peftserve.server.api.app import create_app, create_worker_app, make_services
from peftserve.server.api.fleet import _listen_in
from peftserve.server.api.forwarding import Forwarder
from peftserve.server.api.http_server import HttpServer, listen
from peftserve.server.api.services import open_adapters, open_replica
from peftserve.server.api.workers import Workers
from peftserve.server.config import EngineConfig, ServerConfig


@contextlib.asynccontextmanager
async def _serving(app, listener):
    server = HttpServer(app)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.force_exit = True
        await server.close(task)


@pytest.fixture
async def other(engine, tmp_path):
    """A client of the other; `end_first` ends the first one."""
    config = ServerConfig(
        engine=EngineConfig(model="unused", max_running=4),
        state_dir=tmp_path / "state",
        served_model_name="base",
        api_keys=("key",),
        upload_limit=1 << 20,
    )
    counts = [0, 0]
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        owned = await stack.enter_async_context(open_adapters(config.state_dir, engine, "base", Workers(0, None, None)))
        first = await stack.enter_async_context(contextlib.AsyncExitStack())
        await first.enter_async_context(
            _serving(create_app(make_services(engine, config, owned, counts)), _listen_in(folder))
        )
        replica = stack.enter_context(open_replica(config.state_dir, "base"))
        forwarder = Forwarder(folder)
        stack.push_async_callback(forwarder.close)
        listener = listen("127.0.0.1", 0, shared=True)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = create_worker_app(make_services(engine, config, replica, counts, 1), forwarder)
        await stack.enter_async_context(_serving(app, listener))
        headers = {"Authorization": "Bearer key"}
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, headers=headers, verify=False))
        http.end_first = first.aclose
        yield http


async def test_what_the_first_changes_for_a_client_of_the_other_is_there_at_once(other, adapter_bytes):
    files = [("files", file) for file in adapter_bytes(rank=4096).items()]  # in several pieces
    added = await other.post("/v1/adapters", data={"name": "sql"}, files=files)
    assert (added.status_code, added.json()["version"]) == (201, 1)
    answer = await other.post("/v1/completions", json={"model": "sql", "prompt": [5], "max_tokens": 2})
    assert answer.headers["x-peftserve-adapter"] == "sql@1"
    assert [model["id"] for model in (await other.get("/v1/models")).json()["data"]] == ["base", "sql"]
    assert [card["name"] for card in (await other.get("/v1/adapters?limit=1")).json()["data"]] == ["sql"]
    assert (await other.put("/v1/default-adapter", json={"adapter": "sql"})).json() == {"adapter": "sql"}
    answer = await other.post("/v1/completions", json={"prompt": [5], "max_tokens": 2, "stream": True})
    assert answer.headers["x-peftserve-adapter"] == "sql@1"
    assert (await other.delete("/v1/adapters/sql")).json()["deleted"]
    assert (await other.post("/v1/completions", json={"model": "sql", "prompt": [5]})).status_code == 404


async def test_refusals_are_the_firsts(other, adapter_bytes, check_envelope):
    big = [("files", file) for file in adapter_bytes(rank=1 << 17).items()]
    check_envelope(await other.post("/v1/adapters", data={"name": "sql"}, files=big), 413)
    check_envelope(await other.post("/v1/adapters", data={"name": "base"}, files=big[:1]), 409)
    check_envelope(await other.get("/v1/adapters/no%2Fbody"), 404)
    check_envelope(await other.get("/v1/chat/completions"), 405)
    check_envelope(await other.post("/v1/adapters", headers={"Authorization": ""}), 401)


async def test_without_the_first_the_model_still_answers(other, check_envelope):
    await other.end_first()
    check_envelope(await other.get("/v1/adapters"), 503, "unavailable")
    assert (await other.post("/v1/completions", json={"prompt": [5], "max_tokens": 2})).status_code == 200
