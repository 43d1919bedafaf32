"""Models that compute in ways of their own answer as PEFT does: in chunks, beside each other, with adapters."""

from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig
from transformers import AutoModelForCausalLM

from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.offline.llm import LLM
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

LORA: dict[str, dict[str, Any]] = {
    "diffllama": {"target_modules": "all-linear"},
    "hrm_text": {"target_modules": "all-linear"},
}
LENGTHS = (1, 9, 40)
SETTINGS = {"max_batch_tokens": 16, "page_size": 8, "kv_cache_tokens": 320, "max_loras": 2, "num_threads": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", LORA)
def test_tokens_are_those_of_peft(name: str, oracle: ModuleType, device: str, tmp_path: Path) -> None:
    model = oracle.tiny_model(name, 0, tmp_path / "model")
    adapter = oracle.method_adapter(model, tmp_path / "lora", LoraConfig(r=4, **LORA[name]))
    reference = oracle.PeftOracle(model)
    with engine_of(model, device) as engine:
        engine.inspect_adapter("lora", adapter)
        wanted, found = dict[str, list[int]](), dict[str, list[int]]()
        for key, mixture in (("base", ()), ("lora", ((adapter, 1.0),))):
            for length in LENGTHS:
                prompt = [(7 * i + length) % 280 + 9 for i in range(length)]
                wanted[f"{key} {length}"] = reference.sure(prompt, 8, mixture)
                engine.add_request(request(f"{key} {length}", prompt, [] if key == "base" else [key]))
        while engine.has_work():
            for output in engine.step():
                assert output.error is None, output
                found.setdefault(output.request_id, []).extend(output.token_ids)
        assert {key: found[key][: len(sure)] for key, sure in wanted.items()} == wanted
        assert sum(map(len, wanted.values())) > 6 * len(wanted), "most tokens stand clear of the next best"
        assert any(wanted[f"base {length}"] != wanted[f"lora {length}"] for length in LENGTHS)
        engine.check_integrity()


def test_virtual_tokens_of_layers_that_attend_twice_are_refused(
    oracle: ModuleType, device: str, tmp_path: Path
) -> None:
    """What the second time reads is not what PEFT's checkpoint has."""
    model = oracle.tiny_model("diffllama", 0, tmp_path / "model")
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapter = oracle.method_adapter(model, tmp_path / "prefix", config)
    with engine_of(model, device) as engine, pytest.raises(UnsupportedAdapter, match="attend several times"):
        engine.inspect_adapter("prefix", adapter)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PEFT's, on a model that it is given
def test_a_router_that_works_in_float32_in_a_16_bit_model_is_adapted(
    oracle: ModuleType, device: str, tmp_path: Path
) -> None:
    """Of factors in 16 bits, beside requests for the base, whose rows stay as they are."""
    model = oracle.tiny_model("deepseek_v3", 0, tmp_path / "model")
    config = LoraConfig(r=4, lora_alpha=32, target_modules=[], target_parameters=["gate.weight"])
    adapter = oracle.method_adapter(model, tmp_path / "lora", config)
    base, trained = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16) for _ in range(2))
    settings: dict[str, Any] = {"device": device, "dtype": "bfloat16", "kv_cache_tokens": 320, "max_batch_tokens": 16}
    prompt = [(7 * i) % 80 + 9 for i in range(30)]
    sampling = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True, logprobs=0)
    with LLM(model, **settings) as llm:
        llm.add_adapter("lora", adapter)
        plain, adapted = llm.generate([prompt, prompt], adapter=[None, "lora"], sampling=sampling)
    for found, wanted in ((plain, base), (adapted, PeftModel.from_pretrained(trained, adapter))):
        ids = torch.tensor([prompt + found.token_ids])
        with torch.no_grad():
            logprobs = wanted.eval()(ids).logits[0].float().log_softmax(-1)[len(prompt) - 1 : -1]
        expected = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist()
        assert [report.chosen.logprob for report in found.logprobs or ()] == pytest.approx(expected, abs=0.02)


def engine_of(model: Path, device: str) -> "closing[Engine]":
    return closing(Engine(EngineConfig(model=str(model), device=device, dtype="float32", **SETTINGS)))


def request(name: str, prompt: list[int], adapters: list[str]) -> AddRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    return AddRequest(
        request_id=name,
        prompt_token_ids=prompt,
        sampling=sampling,
        adapters=[WeightedAdapter(adapter) for adapter in adapters],
    )
