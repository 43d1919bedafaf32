"""Adapters come and go and the default moves while clients stream."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CLIENTS = 8
OPERATORS = 8
ROUNDS = 7  # of each operator: 56 deletions and switches of the default, and twice as many uploads
NUM_TOKENS = 12
OPTIONS = {"max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


class Churn:
    def __init__(self, world: Any, client: Any) -> None:
        self.world, self.client = world, client
        self.stable, self.passing = world.adapters[:4], world.adapters[4:]
        self.prompts = _prompts()
        self.answered = 0
        self.over = False

    def ask_peft(self) -> None:
        """Compute PEFT's answers before the traffic, since PEFT is slow and would hold up the event loop."""
        for prompt in self.prompts:
            for mixture in ((), *(((adapter, 1.0),) for adapter in self.world.adapters)):
                self.world.reference.sure(prompt, NUM_TOKENS, mixture)

    async def run_client(self, seed: int) -> None:
        chance = random.Random(seed)
        models = [*(adapter.name for adapter in self.stable), "default", self.world.model.name]
        while not self.over:
            body = {"model": chance.choice(models), "prompt": chance.choice(self.prompts), **OPTIONS}
            answer = await (self.client.stream(body) if seed % 4 else self.client.complete(body))
            name = answer.adapter.partition("@")[0]
            assert body["model"] in ("default", name)
            self.check(answer, body["prompt"], self.mixture_named(name))
            self.answered += 1

    def mixture_named(self, name: str) -> Any:
        return next((((adapter, 1.0),) for adapter in self.stable if adapter.name == name), ())

    async def run_operator(self, seed: int) -> None:
        """Upload, replace and delete adapters in use under one name, and switch the default, ROUNDS times."""
        chance, name = random.Random(seed), f"passing-{seed}"
        for i in range(ROUNDS):
            suffix = b" " * (seed * ROUNDS + i) if i % 2 else b""  # every other one shares its files with another name
            await self.live_and_die(name, chance.sample(self.passing, 2), chance.choice(self.prompts), suffix)
            default = chance.choice([None, *(adapter.name for adapter in self.stable)])
            switched = await self.client.http.put("/v1/default-adapter", json={"adapter": default})
            assert switched.status_code == 200, switched.text

    async def live_and_die(self, name: str, adapters: list[Path], prompt: list[int], suffix: bytes) -> None:
        """Upload two versions of a name, ask each, and delete the name while both answer."""
        old, new = [((adapter, 1.0),) for adapter in adapters]
        body = {"model": name, "prompt": prompt, **OPTIONS}
        await self.upload(name, adapters[0], suffix)
        first = await self.begin(body)
        await self.upload(name, adapters[1], suffix)
        second = await self.begin(body)
        deleted = await self.client.http.delete(f"/v1/adapters/{name}")
        assert deleted.status_code == 200, deleted.text
        late = await self.client.http.post("/v1/completions", json=body)
        assert (late.status_code, late.json()["error"]["code"]) == (404, "model_not_found")
        self.check(await first, prompt, old)
        self.check(await second, prompt, new)

    async def upload(self, name: str, adapter: Path, suffix: bytes) -> None:
        files = self.world.oracle.adapter_files(adapter, suffix)
        response = await self.client.http.post("/v1/adapters", data={"name": name}, files=files)
        assert response.status_code == 201, response.text

    async def begin(self, body: dict[str, Any]) -> asyncio.Task[Any]:
        """Return a stream that has given its first chunk."""
        begun = asyncio.Event()
        stream = asyncio.create_task(self.client.stream(body, begun))
        waiting = asyncio.create_task(begun.wait())
        await asyncio.wait([stream, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return stream

    def check(self, answer: Any, prompt: list[int], mixture: Any) -> None:
        sure = self.world.reference.sure(prompt, NUM_TOKENS, mixture)
        assert answer.token_ids[: len(sure)] == sure
        assert len(answer.token_ids) == NUM_TOKENS


def _prompts() -> list[list[int]]:
    chance = random.Random(8)
    return [[chance.randrange(5, 300) for _ in range(length)] for length in (3, 29, 60)]


async def test_adapters_come_and_go_under_traffic(world: Any, serve: Callable[..., Any]) -> None:
    """No failed request, no wrong token, and all memory back when the last adapter is gone."""
    server = serve("--max-loras", "6", "--max-batch-tokens", "256")
    for adapter in world.adapters[:4]:
        assert server.upload(adapter.name, adapter).status_code == 201
    async with world.connect(server) as client:
        churn = Churn(world, client)
        churn.ask_peft()
        async with asyncio.TaskGroup() as traffic:
            for seed in range(CLIENTS):
                traffic.create_task(churn.run_client(seed))
            async with asyncio.TaskGroup() as operators:
                for seed in range(OPERATORS):
                    operators.create_task(churn.run_operator(seed))
            churn.over = True
        assert churn.answered > CLIENTS
    _delete_all(server)
    server.wait_for_metric("peftserve_adapter_bytes", 0)
    assert server.metric("peftserve_adapters_resident") == 0
    assert server.metric("peftserve_kv_cache_usage_ratio") == 0
    server.wait_until(lambda: not list((server.state / "adapters").iterdir()), "delete the files")


def _delete_all(server: Any) -> None:
    assert server.client.put("/v1/default-adapter", json={"adapter": None}).status_code == 200
    for card in server.client.get("/v1/adapters").json()["data"]:
        assert server.client.delete(f"/v1/adapters/{card['name']}").status_code == 200
    assert server.client.get("/v1/adapters").json()["data"] == []
