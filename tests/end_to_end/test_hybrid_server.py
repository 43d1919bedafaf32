"""Models that keep state beside keys and values, behind a real server: streams, mixtures, reloads, and who leaves."""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from peft import LoraConfig

pytestmark = pytest.mark.slow

TARGETS: dict[str, Any] = {
    "qwen3_5_text": "all-linear",
    "lfm2": "all-linear",
    # PEFT refuses the other linears of it.
    "nemotron_h": ["in_proj", "q_proj", "o_proj", "up_proj"],
}
FLAGS = ["--max-batch-tokens", "16", "--page-size", "8", "--kv-cache-tokens", "144", "--max-loras", "2"]
NUM_TOKENS = 10
OPTIONS = {"max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
STAYING, PASSING = ("stay-0", "stay-1"), ("pass-0", "pass-1", "pass-2")
MIXTURE = {"stay-0": 0.6, "stay-1": 0.5}
CLIENTS, ROUNDS = 4, 2


class Traffic:
    """Clients of one server, and what PEFT says to each of their prompts. adapters: folders by name."""

    def __init__(self, oracle: ModuleType, client: Any, model: Path, adapters: dict[str, Path]) -> None:
        self.client, self.base, self.adapters = client, model.name, adapters
        self.reference, self.files = oracle.PeftOracle(model), oracle.adapter_files
        self.prompts = _prompts()
        self.operators = 0

    def ask_peft(self) -> None:
        """Compute PEFT's answers ahead, since they would hold up the event loop."""
        for prompt in self.prompts:
            for names in ((), *((name,) for name in self.adapters), tuple(MIXTURE)):
                self.sure(prompt, names)

    def sure(self, prompt: list[int], names: tuple[str, ...]) -> list[int]:
        weights = MIXTURE if len(names) > 1 else dict.fromkeys(names, 1.0)
        tokens: list[int] = self.reference.sure(
            prompt, NUM_TOKENS, tuple((self.adapters[name], weights[name]) for name in names)
        )
        return tokens

    async def ask(self, seed: int) -> None:
        """Ask what stays, streamed and whole, for as long as adapters come and go."""
        chance, asked = random.Random(seed), 0
        while self.operators or asked < ROUNDS:
            prompt, names = chance.choice(self.prompts), chance.choice([(), *((n,) for n in STAYING), tuple(MIXTURE)])
            body = {"model": names[0] if names else self.base, "prompt": prompt, **OPTIONS}
            if len(names) > 1:
                body |= {"model": self.base, "adapters": [{"name": n, "weight": MIXTURE[n]} for n in names]}
            answer = await (self.client.stream(body) if asked % 3 else self.client.complete(body))
            self.check(answer, prompt, names)
            asked += 1

    async def operate(self, name: str, seed: int) -> None:
        """Upload versions under one name while those before answer, and delete it while the last one does."""
        chance = random.Random(seed)
        for i in range(ROUNDS):
            asked = []
            for content in chance.sample(PASSING, 2):
                await self.upload(name, content, suffix=b" " * (seed * ROUNDS + i))
                prompt = chance.choice(self.prompts)
                asked.append((await self.begin(name, prompt), prompt, content))
            gone = await self.begin(name, chance.choice(self.prompts))
            gone.cancel()
            deleted = await self.client.http.delete(f"/v1/adapters/{name}")
            assert deleted.status_code == 200, deleted.text
            late = await self.client.http.post("/v1/completions", json={"model": name, "prompt": [9], **OPTIONS})
            assert late.status_code == 404, late.text
            for stream, prompt, content in asked:
                self.check(await stream, prompt, (content,))
        self.operators -= 1

    async def upload(self, name: str, content: str, suffix: bytes = b"") -> None:
        files = self.files(self.adapters[content], suffix)
        response = await self.client.http.post("/v1/adapters", data={"name": name}, files=files)
        assert response.status_code == 201, response.text

    async def begin(self, name: str, prompt: list[int]) -> asyncio.Task[Any]:
        """Return a stream that has given its first chunk."""
        begun = asyncio.Event()
        stream = asyncio.create_task(self.client.stream({"model": name, "prompt": prompt, **OPTIONS}, begun))
        waiting = asyncio.create_task(begun.wait())
        await asyncio.wait([stream, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return stream

    def check(self, answer: Any, prompt: list[int], names: tuple[str, ...]) -> None:
        sure = self.sure(prompt, names)
        assert answer.token_ids[: len(sure)] == sure, (names, len(prompt))
        assert len(answer.token_ids) == NUM_TOKENS


def _prompts() -> list[list[int]]:
    """Return prompts of one token, of a few, and of several chunks with a common beginning."""
    chance = random.Random(3)
    common = [chance.randrange(9, 300) for _ in range(41)]
    return [[17], common[:7], [*common, 20, 21, 22], [*common, 30, 31], common[:33]]


@pytest.mark.parametrize("name", TARGETS)
async def test_states_are_each_sequences_own_while_adapters_come_and_go(
    name: str, oracle: ModuleType, serve: Callable[..., Any], tmp_path: Path
) -> None:
    """No wrong token, snapshots found, sequences preempted, and every slot of state back in the end."""
    model = oracle.tiny_model(name, 0, tmp_path / "model")
    config = partial(LoraConfig, r=4, target_modules=TARGETS[name])
    adapters = {
        each: oracle.method_adapter(model, tmp_path / each, config(use_dora=each == "pass-2"), seed)
        for seed, each in enumerate([*STAYING, *PASSING])
    }
    server = serve(*FLAGS, model=model)
    async with oracle.Client.connect(server.url) as client:
        traffic = Traffic(oracle, client, model, adapters)
        traffic.ask_peft()
        for each in STAYING:
            await traffic.upload(each, each)
        traffic.operators = 2
        async with asyncio.TaskGroup() as group:
            for seed in range(CLIENTS):
                group.create_task(traffic.ask(seed))
            for seed in range(2):
                group.create_task(traffic.operate(f"passing-{seed}", seed))
    server.wait_for_metric("peftserve_sequences_running", 0)
    slots = server.client.get("/metrics").text
    assert 'peftserve_state_slots{of="sequences"} 0.0' in slots
    assert server.metric("peftserve_kv_cache_usage_ratio") == 0
    assert server.metric("peftserve_prefix_cache_hit_tokens_total") > 0
    assert server.metric("peftserve_preemptions_total") > 0
    for each in STAYING:
        assert server.client.delete(f"/v1/adapters/{each}").status_code == 200
    server.wait_for_metric("peftserve_adapter_bytes", 0)
    assert "do not agree" not in server.log.read_text()
