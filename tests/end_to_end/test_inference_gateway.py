"""A server behind a Kubernetes inference gateway: what its picker knows of it, and tools that keep its adapters."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

MAX_LORAS = 2
PAGE = 16


@pytest.fixture(scope="module")
def server(world: Any, device: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("server")
    flags = ("--max-loras", str(MAX_LORAS), "--page-size", str(PAGE), "--kv-cache-tokens", "16384")
    allowed = ("--allow-adapter-path", str(world.adapters[0].parent))
    start = world.oracle.RunningServer.start
    server = start(world.model, folder / "state", folder / "log", "--device", device, *flags, *allowed)
    yield server
    assert server.stop() == 0


def test_what_a_picker_knows_while_adapters_run_and_wait(world: Any, server: Any) -> None:
    first, second, third = [adapter.name for adapter in world.adapters[:3]]
    for adapter in world.adapters[:3]:
        assert server.upload(adapter.name, adapter).status_code == 201
    idle = _state(world, server)
    assert (idle.waiting, idle.running, idle.kv_usage, idle.queued) == (0, 0, 0, frozenset())
    assert (idle.max_active, idle.block_size, idle.num_blocks) == (MAX_LORAS, PAGE, 16384 // PAGE)

    long = {"prompt": [20, 30, 40], "max_tokens": 240, "ignore_eos": True, "n": 16, "stream": True}
    with ExitStack() as streams, ThreadPoolExecutor(1) as pool:
        for name in (first, second):
            streams.enter_context(server.client.stream("POST", "/v1/completions", json={**long, "model": name}))
        short = {"prompt": [20, 30, 40], "max_tokens": 4, "model": third}
        answer = pool.submit(server.client.post, "/v1/completions", json=short)  # has to wait for a place on the device
        seen = []  # of which the last is of the moment: the streams may end right behind it

        def waits() -> bool:
            seen.append(_state(world, server))
            return third in seen[-1].queued

        server.wait_until(waits, "have a sequence wait")
        busy = seen[-1]
        streams.close()
        assert answer.result().status_code == 200
    assert busy.active == {first, second}
    assert busy.queued == {third}
    assert busy.running >= 2
    assert busy.waiting >= 1
    assert 0 < busy.kv_usage <= 1
    scores = {name: world.oracle.lora_score(busy, name) for name in (first, third, "elsewhere")}
    assert scores == {first: 1.0, third: 0.6, "elsewhere": 0.0}

    server.wait_until(lambda: third in _state(world, server).active, "say that the third is on the device")
    server.wait_for_metric("peftserve_sequences_running", 0)
    after = _state(world, server)
    assert after.queued == frozenset()
    assert third in after.active  # and stays where it needs no load, though nothing runs
    for name in (first, second, third):
        assert server.client.delete(f"/v1/adapters/{name}").status_code == 200


def _state(world: Any, server: Any) -> Any:
    """Return what a picker knows after a scrape as it scrapes: no Accept, no key."""
    answer = server.client.get("/metrics", headers={"Accept": "", "User-Agent": "Go-http-client/1.1"})
    assert answer.status_code == 200
    return world.oracle.pod_state(answer.text)


def test_the_syncer_of_adapters_loads_and_unloads(world: Any, server: Any) -> None:
    """What the LoRA syncer beside a pod asks, with its bodies: health, models, load with the base's name, unload."""
    adapter = world.adapters[0]
    assert server.client.get("/health").status_code == 200
    assert adapter.name not in _models(server)
    assert _load(server, adapter) == 200
    assert adapter.name in _models(server)
    answer = server.client.post("/v1/completions", json={"model": adapter.name, "prompt": [5], "max_tokens": 2})
    assert answer.headers["x-peftserve-adapter"].startswith(f"{adapter.name}@")
    missing = server.client.post("/v1/load_lora_adapter", json=_body("lost", adapter.parent / "lost"))
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "adapter_not_found")
    unloaded = server.client.post("/v1/unload_lora_adapter", json={"lora_name": adapter.name})
    assert unloaded.status_code == 200
    assert adapter.name not in _models(server)
    assert _load(server, adapter) == 200  # the next round of a syncer whose list has it again
    assert server.client.post("/v1/unload_lora_adapter", json={"lora_name": adapter.name}).status_code == 200


def _load(server: Any, adapter: Path) -> int:
    status: int = server.client.post("/v1/load_lora_adapter", json=_body(adapter.name, adapter)).status_code
    return status


def _body(name: str, folder: Path) -> dict[str, str]:
    return {"lora_name": name, "lora_path": str(folder), "base_model_name": ""}


def _models(server: Any) -> set[str]:
    return {model["id"] for model in server.client.get("/v1/models").json()["data"]}
