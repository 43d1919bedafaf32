"""Adapters of norms inside attention, wherever they have their tokens: in one batch, token for token as PEFT."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
import transformers

from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

MAX_TOKENS = 5
SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

Make = Callable[..., Any]
MODELS: Mapping[str, tuple[Make, list[str]]] = {
    "qwen3": (lambda **own: transformers.Qwen3Config(**own, head_dim=32), ["q_norm", "k_norm"]),
    "gemma3": (
        lambda **own: transformers.Gemma3TextConfig(**own, head_dim=32, sliding_window=24),
        ["q_norm", "k_norm"],
    ),
    "olmo2": (transformers.Olmo2Config, ["q_norm", "k_norm"]),
    "hunyuan": (
        lambda **own: transformers.HunYuanDenseV1Config(**own, head_dim=16),
        ["query_layernorm", "key_layernorm"],
    ),
    "phi": (lambda **own: transformers.PhiConfig(**own, qk_layernorm=True), ["q_layernorm", "k_layernorm"]),
    "cohere": (lambda **own: transformers.CohereConfig(**own, use_qk_norm=True), ["q_norm", "k_norm"]),
    "stablelm": (
        lambda **own: transformers.StableLmConfig(**own, qk_layernorm=True),
        [f"{part}_layernorm.norms.{i}" for part, count in (("q", 4), ("k", 2)) for i in range(count)],
    ),
}


def _model(make: Make, folder: Path) -> Path:
    model = transformers.AutoModelForCausalLM.from_config(make(**SMALL))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def _answers(engine: Engine, requests: list[tuple[str, list[int]]]) -> list[list[Any]]:
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0)
    found: dict[str, list[Any]] = {}
    for i, (name, prompt) in enumerate(requests):
        found[str(i)] = []
        adapters = [WeightedAdapter(name)] if name else []
        engine.add_request(AddRequest(request_id=str(i), prompt_token_ids=prompt, sampling=sampling, adapters=adapters))
    while engine.has_work():
        for output in engine.step():
            assert output.error is None
            found[output.request_id] += [report.chosen for report in output.logprobs or []]
    return list(found.values())


@pytest.mark.parametrize("name", MODELS)
def test_norms_inside_attention(name: str, tmp_path: Path, oracle: ModuleType, device: str) -> None:
    make, norms = MODELS[name]
    model, task = _model(make, tmp_path / "model"), {"task_type": "CAUSAL_LM"}
    linears = ["q_proj", "v_proj"]
    configs = {
        "tuned": peft.LNTuningConfig(**task, target_modules=norms),
        "tuned more": peft.LNTuningConfig(**task, target_modules=norms[:1]),
        "saved": peft.LoraConfig(**task, r=4, target_modules=linears, modules_to_save=norms),
        "all norms": peft.LoraConfig(**task, r=4, target_modules=linears, modules_to_save=["norm", "layernorm"]),
        "lora": peft.LoraConfig(**task, r=4, target_modules=linears),
    }
    if name in ("olmo2", "qwen3", "gemma3", "cohere"):
        configs["all norms"].modules_to_save = ["norm"]
    if name in ("phi", "hunyuan", "stablelm"):
        configs["all norms"].modules_to_save = ["layernorm"]
    adapters = {key: oracle.method_adapter(model, tmp_path / key, config) for key, config in configs.items()}
    chance = random.Random(3)
    requests = [
        (key, [chance.randrange(5, 300) for _ in range(chance.choice((1, 4, 9, 30)))])
        for key in [*configs, ""]
        for _ in range(2)
    ]
    chance.shuffle(requests)
    engine = Engine(EngineConfig(model=str(model), device=device, dtype="float32", max_loras=8, max_batch_tokens=16))
    try:
        for key, folder in adapters.items():
            engine.inspect_adapter(key, folder)
        answers = _answers(engine, requests)
    finally:
        engine.close()
    models = {"": oracle.plain_model(model)} | {key: oracle.peft_model(model, path) for key, path in adapters.items()}
    for (key, prompt), chosen in zip(requests, answers, strict=True):
        wanted = oracle.peft_generate(models[key], prompt, MAX_TOKENS)
        for report, token, logprob, margin in zip(
            chosen, wanted.token_ids, wanted.logprobs, wanted.margins, strict=True
        ):
            if report.token_id != token:
                assert margin < 1e-4, key
                break
            assert abs(report.logprob - logprob) < 2e-4 * max(1, abs(logprob)), key
