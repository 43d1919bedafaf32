"""Every request of a mixed batch gets PEFT's own tokens, whatever the engine does with it on the way."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from peft import LoraConfig

from peftserve.kernels.bypass.columns.spare import SpareColumns
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.adapters import service
from peftserve.server.wire.messages import AddRequest, SamplingParams, SequenceOutput, WeightedAdapter

pytestmark = pytest.mark.slow

ARCHITECTURES = ["llama", "llama_biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "opt"]
ARCHITECTURES += ["llama4", "gemma4", "falcon", "bloom", "gpt_neo", "mpt"]
ARCHITECTURES += ["qwen3_5_text", "granitemoehybrid"]  # which keep state beside the cache
OF_EVERY_SETTING = ["llama", "gemma2", "gpt2"]
MOST_STEPS = 20_000
ALL_AT_ONCE = "preemption, chunks, shared prefixes and few slots"

SETTINGS: dict[str, dict[str, Any]] = {
    "whole prompts": {"max_batch_tokens": 512, "prefix_caching": False},
    "chunks and shared prefixes": {
        "max_batch_tokens": 16,
        "prefix_caching": True,
        "page_size": 8,
        "async_scheduling": True,
    },
    "preemption": {
        "max_batch_tokens": 512,
        "prefix_caching": True,
        "kv_cache_tokens": 256,
        "async_scheduling": True,
    },
    ALL_AT_ONCE: {
        "max_batch_tokens": 16,
        "prefix_caching": True,
        "page_size": 8,
        "kv_cache_tokens": 160,
        "max_loras": 3,
    },
}
# All settings for some models; for the others the one that asks most.
ROUNDS = [
    (architecture, setting)
    for architecture in ARCHITECTURES
    for setting in SETTINGS
    if architecture in OF_EVERY_SETTING or setting == ALL_AT_ONCE
]


@dataclass
class Scenario:
    """A model, its adapters by digest, and the requests with PEFT's answers."""

    device: str
    model: Path
    digests: dict[Path, str]
    reference: Any
    requests: list[Any]


@pytest.fixture(scope="module")
def scenarios(device: str, oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scenario]:
    """Make the scenario of an architecture, each once."""

    @cache
    def make(architecture: str) -> Scenario:
        folder = tmp_path_factory.mktemp(architecture)
        model = oracle.tiny_model(architecture, 0, folder / "model")
        adapters = oracle.varied_adapters(model, folder / "adapters")
        reference = oracle.PeftOracle(model)
        size = 48 if architecture in OF_EVERY_SETTING else 32
        requests = oracle.random_workload(reference, adapters, size=size)
        return Scenario(device, model, {adapter: _digest(adapter) for adapter in adapters}, reference, requests)

    return make


@pytest.fixture
def scenario(request: pytest.FixtureRequest, scenarios: Callable[[str], Scenario]) -> Scenario:
    return scenarios(request.param)


def _digest(adapter: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(adapter.iterdir()))).hexdigest()


@pytest.mark.parametrize(("scenario", "setting"), ROUNDS, indirect=["scenario"])
def test_greedy_tokens_are_those_of_peft(scenario: Scenario, setting: str) -> None:
    with _engine(scenario, setting) as engine:
        base = _checksum(engine)
        outputs = _serve(engine, scenario, greedy=True)
        for request in scenario.requests:
            _check(request, outputs[request.request_id])
        stats = engine.stats()
        assert (stats.preemptions > 0) == setting.startswith("preemption")
        assert stats.prefix_hit_tokens == 0 or SETTINGS[setting]["prefix_caching"]
        assert stats.prefix_hit_tokens > 0 or setting != "chunks and shared prefixes"
        assert (stats.kv_pages_used, stats.num_running, stats.num_waiting) == (0, 0, 0)
        _release_all(engine, scenario)
        assert _checksum(engine) == base


@pytest.mark.parametrize("scenario", ["llama", "gemma2"], indirect=True)
def test_greedy_tokens_of_compiled_steps_are_those_of_peft(scenario: Scenario) -> None:
    """Of several adapters and mixtures in one batch, and of chunks: all that norms and other modules' inputs leave."""
    with _engine(scenario, ALL_AT_ONCE, compile=True) as engine:
        runner = engine._runner
        assert runner._compiled is not None
        assert runner._compiled.left == []
        assert runner._compiled.num_compiled == runner._compiled.num_pieces <= 6, "all layers are the same few pieces"
        runner._compiled = compiled = Mock(wraps=runner._compiled)
        runner._model.forward = plain = Mock(wraps=runner._model.forward)
        outputs = _serve(engine, scenario, greedy=True)
        for request in scenario.requests:
            _check(request, outputs[request.request_id])
        assert compiled.call_count > 0
        assert plain.call_count == 0
        rows = [call.args[0].ids.numel() for call in compiled.call_args_list]
        assert len(set(rows)) > 5
        _release_all(engine, scenario)


WIDE = [
    ("llama", "whole prompts", False),
    ("llama_biased", "chunks and shared prefixes", False),
    ("gemma2", ALL_AT_ONCE, True),
]


@pytest.mark.parametrize(("scenario", "setting", "compiled"), WIDE, indirect=["scenario"])
def test_greedy_tokens_are_those_of_peft_where_bypasses_run_in_spare_columns(
    scenario: Scenario, setting: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More adapters than there are columns for, some of all, some beside others in a step and in a mixture."""
    monkeypatch.setattr(service, "SpareColumns", partial(SpareColumns, least_rows=6))
    with _engine(scenario, setting, compile=compiled, wide_columns=96) as engine:
        columns = engine.adapters.attachments.columns
        assert columns is not None
        steps: list[tuple[bool, bool]] = []
        base, begin = _checksum(engine), columns.begin

        def begin_and_note(tokens: Any) -> Any:
            rest = begin(tokens)
            steps.append((columns.active, columns.whole))
            columns.check_integrity()
            return rest

        columns.begin = begin_and_note  # type: ignore[method-assign]
        assert (engine._runner._compiled is not None) == compiled
        outputs = _serve(engine, scenario, greedy=True)
        for request in scenario.requests:
            _check(request, outputs[request.request_id])
        assert {(True, False), (False, False)} <= {*steps}
        assert (True, True) in steps or setting == "whole prompts"
        assert sum(active for active, _ in steps) > 10
        _release_all(engine, scenario)
        assert _checksum(engine) == base


@pytest.mark.parametrize("scenario", ["llama"], indirect=True)
def test_seeded_text_does_not_depend_on_what_the_engine_does(scenario: Scenario) -> None:
    texts = []
    for setting in ("whole prompts", ALL_AT_ONCE):
        with _engine(scenario, setting) as engine:
            outputs = _serve(engine, scenario, greedy=False)
            texts.append({name: [t for o in given for t in o.token_ids] for name, given in outputs.items()})
    assert all(text == texts[0] for text in texts)
    assert texts[0] != {request.request_id: request.token_ids for request in scenario.requests}


@pytest.mark.parametrize("scenario", ["llama", "gpt2"], indirect=True)
def test_prompt_logprobs_are_those_of_peft(scenario: Scenario) -> None:
    """With no token to generate and with some, in chunks, beside other requests."""
    scored = [request for request in scenario.requests if len(request.prompt) > 20][:8]
    messages = [
        _message(request, scenario.digests, SamplingParams(temperature=0.0, max_tokens=i % 2, prompt_logprobs=0))
        for i, request in enumerate(scored)
    ]
    with _engine(scenario, "chunks and shared prefixes") as engine:
        outputs = _run(engine, [(0, message) for message in messages])
    for request in scored:
        (output,) = outputs[request.request_id]
        assert output.error is None
        assert output.prompt_logprobs
        assert output.prompt_logprobs[0] is None
        reports = [report for report in output.prompt_logprobs if report is not None]
        assert [report.chosen.token_id for report in reports] == request.prompt[1:]
        expected = scenario.reference.prompt_logprobs(request.prompt, request.mixture)
        assert [report.chosen.logprob for report in reports] == pytest.approx(expected, abs=1e-3)


def test_attention_sinks_are_those_of_peft(oracle: ModuleType, device: str, tmp_path: Path) -> None:
    model = oracle.tiny_model("gpt_oss", 0, tmp_path / "model")
    config = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    adapter = oracle.method_adapter(model, tmp_path / "adapter", config)
    prompts = [[(7 * i + length) % 80 + 9 for i in range(length)] for length in (1, 9, 40)]
    engine = Engine(EngineConfig(model=str(model), device=device, dtype="float32", max_batch_tokens=16))
    try:
        engine.inspect_adapter("lora", adapter)
        wanted = {}
        for parts, peft in (([], oracle.plain_model(model)), (["lora"], oracle.peft_model(model, adapter))):
            for prompt in prompts:
                name = f"{parts} {len(prompt)}"
                wanted[name] = oracle.peft_generate(peft, prompt, 8).token_ids
                sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
                adapters = [WeightedAdapter(part) for part in parts]
                engine.add_request(
                    AddRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, adapters=adapters)
                )
        found: dict[str, list[int]] = {name: [] for name in wanted}
        while engine.has_work():
            for output in engine.step():
                found[output.request_id] += output.token_ids
    finally:
        engine.close()
    assert found == wanted


@contextmanager
def _engine(scenario: Scenario, setting: str, **more: Any) -> Iterator[Engine]:
    """Give an engine that knows the scenario's adapters."""
    options = {"device": scenario.device, "dtype": "float32", **SETTINGS[setting], **more}
    engine = Engine(EngineConfig(model=str(scenario.model), **options))
    try:
        for adapter, digest in scenario.digests.items():
            engine.inspect_adapter(digest, adapter)
        yield engine
    finally:
        engine.close()


def _serve(engine: Engine, scenario: Scenario, greedy: bool) -> dict[str, list[SequenceOutput]]:
    """Answer every request, each added before the step at which it arrives."""
    arrivals = [
        (request.arrival, _message(request, scenario.digests, _sampling(request, greedy, seed)))
        for seed, request in enumerate(scenario.requests)
    ]
    return _run(engine, arrivals)


def _run(engine: Engine, arrivals: list[tuple[int, AddRequest]]) -> dict[str, list[SequenceOutput]]:
    """Step until all is done; returns the outputs of each request. arrivals: (step, request), by step."""
    outputs: dict[str, list[SequenceOutput]] = {message.request_id: [] for _, message in arrivals}
    waiting = deque(arrivals)
    for step in range(MOST_STEPS):
        while waiting and waiting[0][0] <= step:
            engine.add_request(waiting.popleft()[1])
        if not waiting and not engine.has_work():
            return outputs
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
    raise AssertionError(f"work is left after {MOST_STEPS} steps: {engine.stats()}")


def _message(request: Any, digests: dict[Path, str], sampling: SamplingParams) -> AddRequest:
    return AddRequest(
        request_id=request.request_id,
        prompt_token_ids=request.prompt,
        adapters=[WeightedAdapter(digests[adapter], weight) for adapter, weight in request.mixture],
        sampling=sampling,
    )


def _sampling(request: Any, greedy: bool, seed: int) -> SamplingParams:
    if greedy:
        return SamplingParams(temperature=0.0, max_tokens=request.max_tokens, ignore_eos=request.ignore_eos, logprobs=0)
    return SamplingParams(
        temperature=0.8, top_p=0.95, presence_penalty=0.3, max_tokens=request.max_tokens, ignore_eos=True, seed=seed
    )


def _check(request: Any, outputs: list[SequenceOutput]) -> None:
    assert [output.error for output in outputs] == [None] * len(outputs)
    assert [token for output in outputs for token in output.token_ids] == request.token_ids, request
    logprobs = [report.chosen.logprob for output in outputs for report in output.logprobs or []]
    assert logprobs == pytest.approx(request.logprobs, abs=1e-3)
    assert [output.finish_reason for output in outputs] == [None] * (len(outputs) - 1) + [request.finish_reason]


def _release_all(engine: Engine, scenario: Scenario) -> None:
    for digest in scenario.digests.values():
        engine.release_adapter(digest)
    engine.check_integrity()
    stats = engine.stats()
    assert (stats.device_adapter_bytes, stats.host_adapter_bytes) == (0, 0)


def _checksum(engine: Engine) -> str:
    """Return the SHA-256 of every parameter and buffer of the base, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(engine._model.state_dict(keep_vars=True).items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
