"""Two API processes in one event loop: the primary behind its private socket, a worker behind a port."""

import asyncio
import contextlib
import json
import tempfile
from pathlib import Path

import httpx
import pytest

from peftserve.adapters.events import MAX_WATCHERS
from peftserve.server.api.app import create_primary_apps, create_worker_app, make_connections, make_services
from peftserve.server.api.http.connections import OpenConnections
from peftserve.server.api.http.parser import MAX_HEADERS
from peftserve.server.api.http.server import HttpServer, listen
from peftserve.server.api.opened import open_adapters, open_replica
from peftserve.server.api.processes.forwarding import Forwarder
from peftserve.server.api.processes.pool import WorkerPool
from peftserve.server.api.processes.resources import listen_in
from peftserve.server.api.upload_places import UploadPlaces
from peftserve.server.config import EngineConfig, ServerConfig


@contextlib.asynccontextmanager
async def _serving(app, listener, connections=None, **options):
    server = HttpServer(app, connections, **options)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.force_exit = True
        await server.close(task)


@pytest.fixture
async def worker(engine, tmp_path):
    """A client of the worker; `end_primary` ends the primary."""
    config = ServerConfig(
        engine=EngineConfig(model="unused", max_running=4),
        state_dir=tmp_path / "state",
        served_model_name="base",
        api_keys=("key",),
        upload_limit=1 << 20,
        limit_header_bytes=4096,
        timeout_body=2.0,
        timeout_idle=0.2,
        audit_log=str(tmp_path / "audit.jsonl"),
    )
    counts = [0, 0]
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        owned = await stack.enter_async_context(
            open_adapters(config.state_dir, engine, "base", WorkerPool(0, None, None))
        )
        primary = await stack.enter_async_context(contextlib.AsyncExitStack())
        services = make_services(engine, config, owned, counts)
        private = create_primary_apps(services).private
        await primary.enter_async_context(_serving(private, listen_in(folder), private=True))
        replica = stack.enter_context(open_replica(config.state_dir, engine, "base"))
        forwarder = Forwarder(folder)
        stack.push_async_callback(forwarder.close)
        listener = listen("127.0.0.1", 0, shared=True)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        at_primary, services = services, make_services(engine, config, replica, counts, 1)
        for made in (at_primary, services):
            stack.push_async_callback(made.watchers.close)
        app = create_worker_app(services, forwarder)
        await stack.enter_async_context(_serving(app, listener, make_connections(services)))
        headers = {"Authorization": "Bearer key"}
        limits = httpx.Limits(max_connections=None)
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, headers=headers, verify=False, limits=limits, timeout=60)
        )
        http.end_primary = primary.aclose
        http.primary = at_primary
        yield http


async def test_what_the_primary_changes_for_a_client_of_a_worker_is_there_at_once(worker, adapter_bytes):
    files = [("files", file) for file in adapter_bytes(rank=4096).items()]  # in several pieces
    added = await worker.post("/v1/adapters", data={"name": "sql"}, files=files)
    assert (added.status_code, added.json()["version"]) == (201, 1)
    answer = await worker.post("/v1/completions", json={"model": "sql", "prompt": [5], "max_tokens": 2})
    assert answer.headers["x-peftserve-adapter"] == "sql@1"
    assert [model["id"] for model in (await worker.get("/v1/models")).json()["data"]] == ["base", "sql"]
    assert [card["name"] for card in (await worker.get("/v1/adapters?limit=1")).json()["data"]] == ["sql"]
    assert (await worker.put("/v1/default-adapter", json={"adapter": "sql"})).json() == {"adapter": "sql"}
    answer = await worker.post("/v1/completions", json={"prompt": [5], "max_tokens": 2, "stream": True})
    assert answer.headers["x-peftserve-adapter"] == "sql@1"
    assert (await worker.delete("/v1/adapters/sql")).json()["deleted"]
    assert (await worker.post("/v1/completions", json={"model": "sql", "prompt": [5]})).status_code == 404


async def test_refusals_are_the_primarys(worker, adapter_bytes, check_envelope):
    big = [("files", file) for file in adapter_bytes(rank=1 << 17).items()]
    check_envelope(await worker.post("/v1/adapters", data={"name": "sql"}, files=big), 413)
    check_envelope(await worker.post("/v1/adapters", data={"name": "base"}, files=big[:1]), 409)
    check_envelope(await worker.get("/v1/adapters/no%2Fbody"), 404)
    check_envelope(await worker.get("/v1/chat/completions"), 405)
    check_envelope(await worker.post("/v1/adapters", headers={"Authorization": ""}), 401)


async def test_what_passes_the_public_port_passes_the_private_socket_and_no_more(worker, adapter_bytes, check_envelope):
    few = {f"x{i}": "v" for i in range(MAX_HEADERS - 8)} | {"large": "v" * 3000}
    assert (await worker.get("/v1/adapters", headers=few)).status_code == 200
    for headers in ({"large": "v" * 4096}, {f"x{i}": "v" for i in range(MAX_HEADERS)}):
        check_envelope(await worker.get("/v1/adapters", headers=headers), 431)
    check_envelope(await worker.get("/v1/adapters?" + "a" * 4096), 414, "url_too_long")
    await asyncio.sleep(0.5)  # the private connection is kept for longer than a public one would be
    assert (await worker.get("/v1/adapters")).status_code == 200
    assert b" 408 " in await _half_an_upload(worker)
    assert (await worker.post("/v1/adapters", data={"name": "a"}, files=_files(adapter_bytes))).status_code == 201


@pytest.fixture
def patience(monkeypatch):
    """Lets every connection take its time until `patience.undo()`."""
    with monkeypatch.context() as patch:
        patch.setattr(OpenConnections, "_look", lambda *_: None)
        yield patch


async def test_many_slow_requests_keep_no_other_waiting(worker, until, patience):
    worker.primary.uploads = UploadPlaces(capacity=300)
    slow = [asyncio.create_task(_half_an_upload(worker)) for _ in range(300)]
    await until(lambda: worker.primary.uploads._taken.total() == 300)
    for path in ("/v1/adapters", "/metrics", "/health", "/v1/models", "/metrics"):
        assert (await worker.get(path)).status_code == 200
    assert not any(task.done() for task in slow)
    patience.undo()
    assert all(b" 408 " in answer for answer in await asyncio.gather(*slow))


async def test_a_refusal_does_not_wait_for_a_body_that_stalls(worker, adapter_bytes):
    """The client has not sent all, and sends no more until it is told."""
    worker.primary.uploads = UploadPlaces(capacity=0, guaranteed=0)
    answers = await asyncio.gather(*(_half_an_upload(worker) for _ in range(30)))
    assert all(b" 429 " in answer and b"too_many_uploads" in answer for answer in answers), "408 is the end of patience"
    worker.primary.uploads = UploadPlaces()
    assert (await worker.post("/v1/adapters", data={"name": "a"}, files=_files(adapter_bytes))).status_code == 201


@pytest.mark.parametrize("framing", [{"Content-Length": "2"}, {"Transfer-Encoding": "chunked"}])
async def test_bodies_of_both_framings_pass(worker, framing):
    async def body():
        yield b"{"
        yield b"}"

    answer = await worker.request("DELETE", "/v1/adapters/none", headers=framing, content=body())
    assert answer.status_code == 404


async def _half_an_upload(worker):
    """What a client hears that sends no more."""
    reader, writer = await asyncio.open_connection(worker.base_url.host, worker.base_url.port)
    head = b"POST /v1/adapters HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key\r\nContent-Length: 9000\r\n"
    writer.write(head + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n")
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.transport.abort()


def _files(adapter_bytes):
    return [("files", file) for file in adapter_bytes().items()]


async def test_without_the_primary_the_model_still_answers(worker, check_envelope):
    await worker.end_primary()
    check_envelope(await worker.get("/v1/adapters"), 503, "unavailable")
    assert (await worker.post("/v1/completions", json={"prompt": [5], "max_tokens": 2})).status_code == 200


async def test_events_pass_through_and_end_at_the_primary_when_the_client_leaves(worker, adapter_bytes):
    files = [("files", file) for file in adapter_bytes().items()]
    async with worker.stream("GET", "/v1/adapters/events") as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith("retry:")
        await worker.post("/v1/adapters", data={"name": "sql"}, files=files)
        async with asyncio.timeout(60):
            assert [line async for line in _until(lines, "event:")] == ["event: adapter.added"]
    assert (await worker.patch("/v1/adapters/sql", json={"tags": ["x"]})).json()["tags"] == ["x"]
    for _ in range(MAX_WATCHERS + 1):
        async with worker.stream("GET", "/v1/adapters/events") as stream:
            assert (await anext(stream.aiter_lines())).startswith("retry:")
    async with asyncio.timeout(60):
        while (await _status(worker)) != 200:
            await asyncio.sleep(0.05)


async def _until(lines, start):
    async for line in lines:
        if line.startswith(start):
            yield line
            return


async def _status(worker):
    async with worker.stream("GET", "/v1/adapters/events") as stream:
        return stream.status_code


async def test_a_refusal_is_told_once_by_whoever_refuses(worker, tmp_path):
    for number, key in enumerate(("key", "other", "key")):
        await worker.delete(f"/v1/adapters/{number}", headers={"authorization": f"Bearer {key}"})
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["request"], line["status"], line["who"] == "anyone", line["client"]) for line in lines] == [
        ("DELETE /v1/adapters/0", 404, False, "127.0.0.1"),
        ("DELETE /v1/adapters/1", 401, True, "127.0.0.1"),
        ("DELETE /v1/adapters/2", 404, False, "127.0.0.1"),
    ]
