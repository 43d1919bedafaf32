"""Adapters of every method in one batch: each request gets the tokens that PEFT gives it alone."""

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import cycle
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load, save

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.mixing import Ingredient, check_mixture
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

pytestmark = pytest.mark.slow

ARCHITECTURES = ["llama_biased", "gemma2", "phi3", "gpt2", "mixtral"]
MAX_TOKENS = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "whole prompts": {"max_batch_tokens": 1024, "prefix_caching": False, "max_loras": 128},
    "chunks and shared prefixes": {"max_batch_tokens": 24, "page_size": 4, "max_loras": 128},
    "preemption and few slots": {"max_batch_tokens": 64, "page_size": 8, "kv_cache_tokens": 256, "max_loras": 6}
    | {"async_scheduling": True},
}


@dataclass
class World:
    """A model; every adapter that PEFT can make for it, and PEFT's answers: (name, prompt, answer)."""

    oracle: ModuleType
    architecture: str
    model: Path
    adapters: dict[str, Path] = field(default_factory=dict)
    requests: list[tuple[str, list[int], Any]] = field(default_factory=list)

    def task(self, name: str) -> int | None:
        task: int | None = self.oracle.CATALOG[name].task if name else None
        return task


@pytest.fixture(scope="module")
def worlds(oracle: ModuleType, device: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """Make the world of an architecture, each once."""
    return cache(lambda architecture: _make_world(oracle, architecture, tmp_path_factory.mktemp(architecture), device))


@pytest.fixture
def world(request: pytest.FixtureRequest, worlds: Callable[[str], World]) -> World:
    return worlds(request.param)


def _make_world(oracle: ModuleType, architecture: str, folder: Path, device: str) -> World:
    """Make every adapter of the catalogue and PEFT's answers. device: the engine's."""
    world = World(oracle, architecture, oracle.tiny_model(architecture, 3, folder / "model"))
    prompts = _prompts() if architecture == ARCHITECTURES[0] else _prompts()[:2]  # PEFT takes most of the time
    plain = oracle.plain_model(world.model)
    kind = oracle.kind_of(plain.config.model_type)
    for name, entry in oracle.CATALOG.items():
        if (config := entry.make(kind)) is None:
            continue
        try:
            made = oracle.method_adapter(world.model, folder / name, config, randomize=entry.randomize)
        except Exception as error:
            if oracle.is_fault(error):
                raise
            continue
        world.adapters[name] = made
        model = oracle.peft_model(world.model, made, device if entry.decomposes else "cpu")
        world.requests += [(name, p, oracle.peft_generate(model, p, MAX_TOKENS, entry.task)) for p in prompts]
    world.requests += [("", prompt, oracle.peft_generate(plain, prompt, MAX_TOKENS)) for prompt in prompts]
    return world


def _engine(world: World, device: str, **settings: Any) -> Engine:
    return Engine(EngineConfig(model=str(world.model), device=device, dtype="float32", **settings))


def _prompts() -> list[list[int]]:
    """Return prompts of different lengths, two with a common beginning and the invocation tokens of aLoRA behind it."""
    chance = random.Random(1)
    common = [chance.randrange(9, 300) for _ in range(13)]
    return [[*common, 7, 8, 40, 41], [chance.randrange(9, 300) for _ in range(30)], [*common, 7, 8, 11, 7, 8, 12]]


# All settings for one model; for the others the one that asks most.
ROUNDS = [(ARCHITECTURES[0], setting) for setting in SETTINGS]
ROUNDS += [(architecture, "preemption and few slots") for architecture in ARCHITECTURES[1:]]


@pytest.mark.parametrize(("world", "setting"), ROUNDS, indirect=["world"])
def test_every_method_in_one_batch(world: World, setting: str, device: str) -> None:
    engine = _engine(world, device, **SETTINGS[setting])
    try:
        digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in world.adapters}
        for name, adapter in world.adapters.items():
            engine.inspect_adapter(digests[name], adapter)
        for _ in range(2):  # with a cold prefix cache, and with a warm one
            wrong = _serve(engine, world, digests)
            assert not wrong, "\n".join(wrong)
        for digest in digests.values():
            engine.release_adapter(digest)
        engine.check_integrity()
        stats = engine.stats()
        assert (stats.device_adapter_bytes, stats.host_adapter_bytes, stats.kv_pages_used) == (0, 0, 0)
    finally:
        engine.close()


@pytest.mark.parametrize("world", ARCHITECTURES[:1], indirect=True)
def test_neighbours_get_what_they_get_without_the_others(world: World, device: str) -> None:
    """The base and plain LoRA, beside every other method and beside nobody else: the same tokens."""
    engine = _engine(world, device, prefix_caching=False)
    try:
        digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in world.adapters}
        for name, adapter in world.adapters.items():
            engine.inspect_adapter(digests[name], adapter)
        plain = [(name, prompt) for name in ("", "lora") for prompt in _prompts()]
        others = [(name, prompt) for name in world.adapters if name != "lora" for prompt in _prompts()]
        alone = _tokens(engine, digests, plain)
        assert _tokens(engine, digests, plain + others)[: len(plain)] == alone
    finally:
        engine.close()


@pytest.mark.parametrize("world", ARCHITECTURES[:1], indirect=True)
def test_every_method_by_itself_in_compiled_decodes(world: World, device: str) -> None:
    """And then in one batch, but those that change norms or read another's input: nothing compiled runs these."""
    engine = _engine(world, device, compile=True, prefix_caching=False, max_loras=128)
    try:
        engine._runner._compiled = compiled = Mock(wraps=engine._runner._compiled)
        digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("", *world.adapters)}
        for name, adapter in world.adapters.items():
            engine.inspect_adapter(digests[name], adapter)

        def steps_compiled(*names: str) -> int:
            before = compiled.call_count
            asked = replace(world, requests=[request for request in world.requests if request[0] in names])
            wrong = _serve(engine, asked, digests)
            assert not wrong, "\n".join(wrong)
            steps: int = compiled.call_count - before
            return steps

        served = [name for name in ("", *world.adapters) if steps_compiled(name)]
        assert {"", "lora", "lora-dora", "ia3", "oft", "loha", "prefix-tuning"} <= {*served}
        assert "ln-tuning" not in served
        assert steps_compiled(*served)
    finally:
        engine.close()


def _tokens(engine: Engine, digests: dict[str, str], requests: list[tuple[str, list[int]]]) -> list[list[int]]:
    """Run all requests at once and return the tokens of each. Adapters with several tasks run their first."""
    for i, (name, prompt) in enumerate(requests):
        engine.add_request(_message(i, prompt, [WeightedAdapter(digests[name])] if name else []))
    tokens: list[list[int]] = [[] for _ in requests]
    while engine.has_work():
        for output in engine.step():
            tokens[int(output.request_id)] += output.token_ids
    return tokens


MIXTURES = [
    {"lora": 0.7, "lora-dora": 0.4},
    {"ia3": 0.5, "lora-rslora": 1.0, "beft": -0.5},
    {"oft": 0.6, "loha": 0.5},
    {"ia3": 0.5, "hira": 0.5, "shira": 0.7},
    {"road-1": 0.5, "lokr": -0.3},
    {"fourierft": 0.5, "c3a": -0.4, "randlora": 0.6},
]


@pytest.mark.parametrize("world", ARCHITECTURES[:1], indirect=True)
@pytest.mark.parametrize("mixture", MIXTURES, ids="+".join)
def test_mixtures_of_methods_are_weighted_sums_of_their_deltas(
    world: World, mixture: dict[str, float], device: str
) -> None:
    if not mixture.keys() <= world.adapters.keys():
        pytest.skip("PEFT does not support one of them here")
    model = world.oracle.peft_mixture(world.model, [(world.adapters[name], w) for name, w in mixture.items()])
    wanted = [(str(mixture), prompt, world.oracle.peft_generate(model, prompt, MAX_TOKENS)) for prompt in _prompts()]
    engine = _engine(world, device)
    try:
        for name in mixture:
            engine.inspect_adapter(name, world.adapters[name])
        parts = [WeightedAdapter(name, weight) for name, weight in mixture.items()]
        outputs: list[list[Any]] = [[] for _ in wanted]
        for i, (_, prompt, _) in enumerate(wanted):
            engine.add_request(_message(i, prompt, parts))
        while engine.has_work():
            for output in engine.step():
                outputs[int(output.request_id)].append(output)
        assert not [text for pair in zip(wanted, outputs, strict=True) if (text := _difference(*pair))]
    finally:
        engine.close()


WEIGHTS = {"llama_biased": (0.5, -0.4), "mixtral": (-0.4, 0.5)}  # of a method and of the next one
# These are no deltas of modules, so that no weight scales them.
WITHOUT_WEIGHT = {"prompt-tuning", "p-tuning", "prefix-tuning", "prefix-projection", "cpt", "multitask-prompt"}
WITHOUT_WEIGHT |= {"cartridge", "adaption-prompt"}
# An invocation is not of one module; experts are several products each, and a router returns more than its own.
SCALED = {"lora-alora", "lora-experts", "lora-all-linear"}


@pytest.mark.parametrize("world", ["llama_biased", "mixtral"], indirect=True)
def test_every_method_at_weights_is_that_much_of_its_delta(world: World, device: str) -> None:
    """At each module the base's output and so much of what PEFT's module makes of the same input beyond it."""
    engine = _engine(world, device, max_loras=128)
    try:
        refused, messages = set(), list[AddRequest]()
        wanted: list[tuple[str, list[int], Any]] = []
        prompt = _prompts()[0]
        for name, weight in zip(world.adapters, cycle(WEIGHTS[world.architecture])):
            facts = engine.inspect_adapter(name, world.adapters[name])
            try:
                check_mixture([Ingredient(name, weight, facts)])
            except InvalidAdapter:
                refused.add(name)
                continue
            answer = world.oracle.peft_generate(_weighted(world, name, weight), prompt, 3)
            wanted.append((f"{weight} of {name}", prompt, answer))
            messages.append(_message(len(messages), prompt, [WeightedAdapter(name, weight, world.task(name) or 0)], 3))
        assert refused == WITHOUT_WEIGHT & world.adapters.keys()
        outputs: list[list[Any]] = [[] for _ in wanted]
        for message in messages:
            engine.add_request(message)
        while engine.has_work():
            for output in engine.step():
                outputs[int(output.request_id)].append(output)
        wrong = [text for pair in zip(wanted, outputs, strict=True) if (text := _difference(*pair))]
        assert not wrong, "\n".join(wrong)
    finally:
        engine.close()


def _weighted(world: World, name: str, weight: float) -> Any:
    adapter, task = world.adapters[name], world.task(name)
    if name in SCALED:
        return world.oracle.peft_scaled(world.model, adapter, weight)
    return world.oracle.peft_mixture(world.model, [(adapter, weight)], {} if task is None else {adapter: task})


def _message(i: int, prompt: list[int], parts: list[WeightedAdapter], max_tokens: int = MAX_TOKENS) -> AddRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=0)
    return AddRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling, adapters=parts)


def _serve(engine: Engine, world: World, digests: dict[str, str]) -> list[str]:
    """Run all requests at once and return what went wrong."""
    outputs: dict[str, list[Any]] = {}
    order = random.Random(2).sample(range(len(world.requests)), len(world.requests))
    for i in order:
        name, prompt, _ = world.requests[i]
        parts = [WeightedAdapter(digests[name], 1.0, world.task(name) or 0)] if name else []
        engine.add_request(_message(i, prompt, parts))
        outputs[str(i)] = []
    while engine.has_work():
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
    return [text for i in order if (text := _difference(world.requests[i], outputs[str(i)]))]


def _difference(request: tuple[str, list[int], Any], outputs: list[Any]) -> str:
    name, prompt, wanted = request
    if outputs[-1].error:
        return f"{name or 'base'}: {outputs[-1].error}"
    reports = [report.chosen for output in outputs for report in output.logprobs or []]
    rows = zip(reports, wanted.token_ids, wanted.logprobs, wanted.margins, strict=True)
    for i, (report, token, logprob, margin) in enumerate(rows):
        where = f"{name or 'base'} after {len(prompt)} tokens: number {i}"
        if report.token_id != token:
            return "" if margin < 1e-4 else f"{where} is {report.token_id}, not {token}"
        if abs(report.logprob - logprob) > 1e-4 * max(1, abs(logprob)):
            return f"{where} has the logprob {report.logprob:.6f}, not {logprob:.6f}"
    return ""


@pytest.fixture(scope="module")
def server(worlds: Callable[[str], World], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of the first architecture's model. Each test deletes what it uploads."""
    world, folder = worlds(ARCHITECTURES[0]), tmp_path_factory.mktemp("server")
    start = world.oracle.RunningServer.start
    server = start(world.model, folder / "state", folder / "log", "--max-loras", "16", "--page-size", "4")
    yield server
    server.stop()


@pytest.mark.parametrize("world", ARCHITECTURES[:1], indirect=True)
def test_broken_uploads_of_every_method(world: World, server: Any) -> None:
    """A 400 that says why, in OpenAI's envelope, nothing left on the disk, and the server goes on."""
    served = []
    for i, (name, adapter) in enumerate(world.adapters.items()):
        for what, files in _broken(world.oracle.adapter_files(adapter), whatever_the_method=i % 10 == 0):
            response = server.client.post("/v1/adapters", data={"name": name}, files=files)
            if response.status_code != 400 or not response.json()["error"]["message"]:
                served.append((name, what, response.status_code, response.text))
    assert not served
    assert server.client.get("/v1/adapters").json()["data"] == []
    for folder in ("adapters", "staging"):
        assert list((server.state / folder).iterdir()) == []
    assert server.metric("peftserve_adapter_bytes") == 0


@pytest.mark.parametrize("world", ARCHITECTURES[:1], indirect=True)
async def test_every_method_on_a_server(world: World, server: Any) -> None:
    """Uploaded over HTTP, asked all at once, streamed and not; then deleted, and all memory is back."""
    for name, adapter in world.adapters.items():
        response = server.upload(name, adapter)
        assert response.status_code == 201, f"{name}: {response.text}"
    async with world.oracle.Client.connect(server.url) as client:
        asking = (_ask(world, client, i, request) for i, request in enumerate(world.requests))
        answers = await asyncio.gather(*asking)
    for (name, prompt, wanted), answer in zip(world.requests, answers, strict=True):
        sure = next((i for i, m in enumerate(wanted.margins) if m < 1e-4), MAX_TOKENS)
        assert answer.token_ids[:sure] == wanted.token_ids[:sure], (name, prompt)
    _delete_all(world, server)
    for name, adapter in world.adapters.items():  # once more, each by itself
        assert server.upload(name, adapter).status_code == 201
        body = {"model": name, "prompt": [20, 7, 8, 30], "max_tokens": 2, "task_id": world.task(name)}
        assert server.client.post("/v1/completions", json=body).status_code == 200
    _delete_all(world, server)


def _broken(files: list[Any], *, whatever_the_method: bool) -> Iterator[tuple[str, list[Any]]]:
    """Yield uploads in which one of the adapter's own two files is broken, and files of its experts are whole.

    whatever_the_method: also those that are refused before the method is read.
    """
    contents = dict(part for _, part in files)
    config, weights = (contents.pop(name) for name in ("adapter_config.json", "adapter_model.safetensors"))
    rest = [("files", part) for part in contents.items()]
    tensors = load(weights)
    first = min(tensors)
    others = {name: tensor for name, tensor in tensors.items() if name != first}
    unread = (
        ("cut off", config, weights[:-2]),
        ("of an unknown method", config.replace(b'"peft_type": "', b'"peft_type": "X'), weights),
        ("with half a configuration", config[: len(config) // 2], weights),
    )
    for what, changed_config, changed in (
        *(unread if whatever_the_method else ()),
        ("without its tensors", config, save({})),
        ("with a tensor more", config, save({**tensors, "base_model.model.model.layers.0.other": torch.ones(2)})),
        ("with a tensor of another name", config, save({**others, first + "_": tensors[first]})),
    ):
        yield (
            what,
            [
                ("files", ("adapter_config.json", changed_config)),
                ("files", ("adapter_model.safetensors", changed)),
                *rest,
            ],
        )


def _delete_all(world: World, server: Any) -> None:
    """Delete all adapters, and wait until all memory that they took is free, in the engine and on the disk."""
    for name in world.adapters:
        assert server.client.delete(f"/v1/adapters/{name}").status_code == 200
    server.wait_for_metric("peftserve_adapter_bytes", 0)
    server.wait_until(lambda: not list((server.state / "adapters").iterdir()), "delete the files")


async def _ask(world: World, client: Any, i: int, request: tuple[str, list[int], Any]) -> Any:
    name, prompt, _ = request
    body = {"model": name or world.model.name, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    if (task := world.task(name)) is not None:
        body["task_id"] = task
    return await (client.stream(body) if i % 2 else client.complete(body))
