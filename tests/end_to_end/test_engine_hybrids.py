"""Models that keep state beside keys and values answer as PEFT does, with all that a step may hold."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from peft import LNTuningConfig, LoraConfig, PeftConfig, VeraConfig

from peftserve.adapters.errors import AdapterError
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, SequenceOutput, WeightedAdapter

TARGETS: dict[str, Any] = {
    "qwen3_next": ["in_proj_qkvz", "in_proj_ba", "out_proj", "q_proj", "k_proj", "o_proj"],
    "qwen3_5_text": "all-linear",
    "olmo_hybrid": "all-linear",
    "kimi_linear": "all-linear",
    "lfm2": "all-linear",
    "granitemoehybrid": "all-linear",
    # PEFT refuses the other linears of these.
    "falcon_h1": ["in_proj", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "nemotron_h": ["in_proj", "q_proj", "o_proj", "up_proj", "down_proj"],
    "mamba2": ["in_proj"],
    "mamba": ["in_proj", "x_proj", "dt_proj"],
    "jamba": ["in_proj", "x_proj", "dt_proj", "out_proj", "q_proj", "o_proj", "gate_proj", "down_proj"],
    "zamba": "all-linear",
    "minimax": ["qkv_proj", "out_proj", "output_gate", "q_proj", "o_proj"],
    "recurrent_gemma": "all-linear",
    "rwkv": "all-linear",
    "zaya": ["q_proj", "k_proj", "v_proj_current", "o_proj"],
}
# Norms inside mixers: with a gate and the heads as rows, with a gate, in groups, and in a mixer that runs by tokens.
NORMS = {
    "qwen3_5_text": ["linear_attn.norm", "q_norm"],
    "kimi_linear": ["o_norm"],
    "nemotron_h": ["mixer.norm"],
    "jamba": ["dt_layernorm", "b_layernorm"],
}
COMPILED = ("qwen3_5_text",)  # with its mixers called out, and all of its layers compiled
LENGTHS = (1, 9, 40)
SETTINGS = {"max_batch_tokens": 16, "page_size": 8, "kv_cache_tokens": 320, "max_loras": 2, "num_threads": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_chunks_decodes_and_adapters_in_one_step_give_pefts_tokens(
    name: str, oracle: ModuleType, device: str, tmp_path: Path
) -> None:
    """Prompts of one to many chunks, whose states follow each other, with adapters inside the modules that keep it."""
    model = oracle.tiny_model(name, 0, tmp_path / "model")
    configs: dict[str, PeftConfig] = {
        "lora": LoraConfig(r=4, target_modules=TARGETS[name]),
        "dora": LoraConfig(r=3, target_modules=TARGETS[name], use_dora=True, use_rslora=True),
    }
    if name in NORMS:
        configs["norms"] = LNTuningConfig(task_type="CAUSAL_LM", target_modules=NORMS[name])
    adapters = {key: _written(oracle, model, tmp_path / key, config) for key, config in configs.items()}
    reference = oracle.PeftOracle(model)
    engine = Engine(
        EngineConfig(model=str(model), device=device, dtype="float32", compile=name in COMPILED, **SETTINGS)
    )
    try:
        compiled = engine._runner._compiled
        assert name not in COMPILED or (compiled is not None and compiled.left == [])
        for key, folder in adapters.items():
            engine.inspect_adapter(key, folder)
        wanted = {}
        for key, folder in [(None, None), *adapters.items()]:
            for length in LENGTHS:
                prompt = [(7 * i + length) % 280 + 9 for i in range(length)]
                mixture = () if folder is None else ((folder, 1.0),)
                wanted[f"{key} {length}"] = reference.sure(prompt, 8, mixture)
                engine.add_request(_request(f"{key} {length}", prompt, key))
        outputs = _run(engine)
        assert {key: outputs[key][: len(sure)] for key, sure in wanted.items()} == wanted
        assert sum(map(len, wanted.values())) > 6 * len(wanted), "most tokens stand clear of the next best"
        engine.check_integrity()
    finally:
        engine.close()


def test_adapters_on_what_a_mixer_keeps_to_itself_are_refused(oracle: ModuleType, device: str, tmp_path: Path) -> None:
    """Linears whose weight it reads, or that it gives rows of its own."""
    refused = {
        ("zaya", "not run on every token"): LoraConfig(target_modules=["v_proj_delayed"]),
        ("jamba", "never calls"): VeraConfig(target_modules=["dt_proj"]),
    }
    for (name, why), config in refused.items():
        model = oracle.tiny_model(name, 0, tmp_path / name)
        adapter = _written(oracle, model, tmp_path / name / "adapter", config)
        engine = Engine(EngineConfig(model=str(model), device=device, dtype="float32", **SETTINGS))
        try:
            with pytest.raises(AdapterError, match=why):
                engine.inspect_adapter(name, adapter)
        finally:
            engine.close()


def _written(oracle: ModuleType, model: Path, folder: Path, config: PeftConfig) -> Path:
    adapter: Path = oracle.method_adapter(model, folder, config)
    return adapter


def _request(name: str, prompt: list[int], adapter: str | None) -> AddRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    adapters = [] if adapter is None else [WeightedAdapter(adapter)]
    return AddRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, adapters=adapters)


def _run(engine: Engine) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    while engine.has_work():
        for output in engine.step():
            assert output.error is None, output
            found.setdefault(output.request_id, []).extend(_tokens(output))
    return found


def _tokens(output: SequenceOutput) -> list[int]:
    return output.token_ids
