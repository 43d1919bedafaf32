"""Adapters inside mixtures of experts: in one batch, each request gets the tokens that PEFT gives it alone."""

import random
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from peftserve.adapters.sites import SiteKind
from peftserve.kernels.ops.experts.combinations import all_combinations
from peftserve.kernels.ops.experts.triton_backend import triton_terms
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.model import experts
from peftserve.server.engine.model.loading import load_model
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

MAX_TOKENS = 8
UP, DOWN = "experts.gate_up_proj", "experts.down_proj"
CONFIGS: dict[str, dict[str, Any]] = {
    "both": {"r": 20, "lora_alpha": 30, "target_modules": [], "target_parameters": [UP, DOWN]},
    "down": {"r": 2, "target_modules": [], "target_parameters": [DOWN]},
    "all": {"r": 8, "target_modules": ["q_proj", "v_proj", "q_a_proj", "o_proj"], "target_parameters": [UP, DOWN]},
    "attention": {"r": 4, "target_modules": ["q_proj", "v_proj", "q_a_proj"]},
}
PROMPTS = [[random.Random(i).randrange(9, 300) for _ in range(length)] for i, length in enumerate((5, 30))]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "llama4", "longcat_flash"])
def test_every_adapter_in_one_batch(oracle: ModuleType, tmp_path: Path, architecture: str) -> None:
    model = oracle.tiny_model(architecture, 3, tmp_path / "model")
    adapters = {
        name: oracle.method_adapter(model, tmp_path / name, LoraConfig(task_type="CAUSAL_LM", **options))
        for name, options in CONFIGS.items()
    }
    engine = Engine(EngineConfig(model=str(model), device="cpu", dtype="float32", max_batch_tokens=24, page_size=4))
    try:
        for name, adapter in adapters.items():
            engine.inspect_adapter(name, adapter)
        parts = {name: [WeightedAdapter(name, 1.0)] for name in adapters} | {"": []}
        outputs = _serve(engine, parts)
        for name in parts:
            hf = oracle.peft_model(model, adapters[name]) if name else oracle.plain_model(model)
            for i, prompt in enumerate(PROMPTS):
                _check(oracle.peft_generate(hf, prompt, MAX_TOKENS), outputs[f"{name}/{i}"])
        assert len({tuple(token for token, _ in out) for out in outputs.values()}) > len(parts)
    finally:
        engine.close()


def test_a_mixture_is_the_weighted_sum_of_the_deltas(oracle: ModuleType, tmp_path: Path) -> None:
    model = oracle.tiny_model("mixtral", 3, tmp_path / "model")
    weights, base = {"both": 0.6, "down": -0.5}, oracle.plain_model(model)
    engine = Engine(EngineConfig(model=str(model), device="cpu", dtype="float32"))
    try:
        for name, weight in weights.items():
            config = LoraConfig(task_type="CAUSAL_LM", **CONFIGS[name])
            adapter = oracle.method_adapter(model, tmp_path / name, config)
            engine.inspect_adapter(name, adapter)
            _add_deltas(base, oracle.peft_model(model, adapter), weight)
        outputs = _serve(engine, {"mix": [WeightedAdapter(*part) for part in weights.items()]})
        for i, prompt in enumerate(PROMPTS):
            _check(oracle.peft_generate(base, prompt, MAX_TOKENS), outputs[f"mix/{i}"])
    finally:
        engine.close()


@pytest.mark.slow
def test_the_kernels_give_the_same_tokens(oracle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, where there is no GPU."""
    model = oracle.tiny_model("gpt_oss", 3, tmp_path / "model")
    made: list[int] = []

    def terms(parts: Any, rows: int, device: torch.device) -> Any:
        made.append(rows)
        return triton_terms(all_combinations(parts, rows), device)

    monkeypatch.setattr(experts, "expert_terms", terms)
    engine = Engine(EngineConfig(model=str(model), device="cpu", dtype="float32"))
    try:
        adapters = {}
        for name in ("both", "down"):
            config = LoraConfig(task_type="CAUSAL_LM", **CONFIGS[name])
            adapters[name] = oracle.method_adapter(model, tmp_path / name, config)
            engine.inspect_adapter(name, adapters[name])
        parts = {name: [WeightedAdapter(name, 1.0)] for name in adapters} | {"": []}
        outputs = _serve(engine, parts, PROMPTS[:1], max_tokens=5)
        for name in parts:
            hf = oracle.peft_model(model, adapters[name]) if name else oracle.plain_model(model)
            _check(oracle.peft_generate(hf, PROMPTS[0], 5), outputs[f"{name}/0"], 5)
        assert made
        assert all(before != after for before, after in pairwise(made)), "made anew while the same sequences decode"
    finally:
        engine.close()


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_are_found(oracle: ModuleType, tmp_path: Path, architecture: str) -> None:
    model = oracle.tiny_model(architecture, 3, tmp_path)
    loaded = load_model(EngineConfig(model=str(model), device="cpu"))
    found = {name: site for name, site in loaded.sites.table.sites.items() if site.kind is SiteKind.EXPERTS}
    assert list(found) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    for site in found.values():
        assert [p.name for p in site.parameters] == ["gate_up_proj", "down_proj"]
        assert site.parameters[0][1:3] == (4, 64)
    assert AutoModelForCausalLM.from_pretrained(model).config._experts_implementation != loaded.experts.name
    assert loaded.twin.config._experts_implementation != loaded.experts.name


@torch.no_grad()
def _add_deltas(base: Any, model: Any, weight: float) -> None:
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "parameter_name"):
            owner = base.get_submodule(name.replace(".base_layer", ""))
            getattr(owner, module.parameter_name).add_(module.get_delta_weight("default"), alpha=weight)


def _serve(
    engine: Engine,
    parts: dict[str, list[WeightedAdapter]],
    prompts: list[list[int]] = PROMPTS,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, list[tuple[int, float]]]:
    """All at once. Returns (token, logprob) by request."""
    outputs: dict[str, list[tuple[int, float]]] = {}
    for name, own in parts.items():
        for i, prompt in enumerate(prompts):
            sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=0)
            request = AddRequest(request_id=f"{name}/{i}", prompt_token_ids=prompt, sampling=sampling, adapters=own)
            engine.add_request(request)
            outputs[request.request_id] = []
    while engine.has_work():
        for output in engine.step():
            assert not output.error
            chosen = [report.chosen for report in output.logprobs or []]
            outputs[output.request_id] += [(token.token_id, token.logprob) for token in chosen]
    return outputs


def _check(wanted: Any, got: list[tuple[int, float]], max_tokens: int = MAX_TOKENS) -> None:
    assert len(got) == max_tokens
    for (token, logprob), *answer in zip(got, wanted.token_ids, wanted.logprobs, wanted.margins, strict=True):
        if answer[2] < 1e-4:
            return
        assert token == answer[0]
        assert logprob == pytest.approx(answer[1], rel=1e-4, abs=1e-4)
