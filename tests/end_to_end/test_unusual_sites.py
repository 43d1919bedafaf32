"""Sites that few models have: shared experts, MLA's parts, and the convolutions of a short memory.

PEFT puts its layer in place of such a convolution, and transformers never calls it: a LoRA there changes nothing.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    MambaConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.server.engine.model.sites import SiteTracer
from peftserve.server.offline import LLM
from peftserve.server.wire.messages import SamplingParams

PROMPTS = [[5, 9, 17, 33, 7, 8, 40, 41], [60, 61, 62, 100, 101, 13, 14]]
TOKENS = 12
_SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LFM2 = Lfm2Config(**_SHAPE, num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"])
QWEN = Qwen3NextConfig(
    **_SHAPE,
    num_hidden_layers=2,
    layer_types=["linear_attention", "full_attention"],
    head_dim=8,
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
)
MAMBA = MambaConfig(vocab_size=128, hidden_size=32, state_size=4, num_hidden_layers=2)
RECURRENT = RecurrentGemmaConfig(**(_SHAPE | {"hidden_size": 32}), num_hidden_layers=3, lru_width=32, head_dim=8)


def written(config: PreTrainedConfig, folder: Path, oracle: ModuleType) -> Path:
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.2 * noise if parameter.dim() == 1 else 0.4 * noise)
    model.save_pretrained(folder)
    oracle.tiny_tokenizer().save_pretrained(folder)
    return folder


def served(base: Path, adapter: Path | None) -> list[list[int]]:
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    adapters = {} if adapter is None else {"a": adapter}
    with LLM(base, adapters=adapters, device="cpu", dtype="float32") as llm:
        answers = llm.generate(PROMPTS, adapter="a" if adapters else None, sampling=sampling)
        return [list(answer.token_ids) for answer in answers]


def check(base: Path, lora: Path, oracle: ModuleType) -> None:
    """Check that the engine answers as PEFT does, and otherwise than the base."""
    peft = oracle.PeftOracle(base)
    wanted = [peft.greedy(prompt, TOKENS, ((lora, 1.0),)).token_ids for prompt in PROMPTS]
    assert wanted != [peft.greedy(prompt, TOKENS).token_ids for prompt in PROMPTS]
    assert served(base, lora) == wanted


CASES: dict[str, tuple[PreTrainedConfig, PeftConfig]] = {
    "lfm2": (LFM2, LoraConfig(r=32, use_dora=True, target_modules=["conv.conv", "in_proj", "out_proj", "w1"])),
    "qwen3_next": (QWEN, LoraConfig(r=48, target_modules=["conv1d", "in_proj_qkvz", "out_proj", "q_proj"])),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_lora_on_a_convolution_that_never_runs(case: str, oracle: ModuleType, tmp_path: Path) -> None:
    config, adapter = CASES[case]
    base = written(config, tmp_path / "base", oracle)
    check(base, oracle.method_adapter(base, tmp_path / "lora", adapter), oracle)


LINEARS: dict[str, tuple[str, PeftConfig]] = {
    "a shared expert and its gate": (
        "qwen2_moe",
        LoraConfig(r=4, target_modules=["shared_expert_gate", "gate_proj", "up_proj", "down_proj"]),
    ),
    "a shared expert, scaled": (
        "qwen2_moe",
        IA3Config(target_modules=["up_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "the parts of MLA": (
        "deepseek_v3",
        LoraConfig(r=4, use_dora=True, target_modules=["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"]),
    ),
    "shared experts": ("deepseek_v3", LoraConfig(r=4, target_modules=["gate_proj", "up_proj", "down_proj"])),
}


@pytest.mark.parametrize("case", LINEARS)
def test_linears_that_few_models_have(case: str, oracle: ModuleType, tmp_path: Path) -> None:
    architecture, adapter = LINEARS[case]
    base = oracle.tiny_model(architecture, 3, tmp_path / "base")
    check(base, oracle.method_adapter(base, tmp_path / "adapter", adapter), oracle)


def table_of(base: Path, oracle: ModuleType) -> Any:
    model = oracle.plain_model(base)
    with torch.inference_mode(), SiteTracer(model, 8) as tracer:
        model(torch.arange(8)[None], use_cache=False)
    return model, tracer.result().table


def test_the_card_says_what_changes_nothing(oracle: ModuleType, tmp_path: Path) -> None:
    config, adapter = CASES["lfm2"]
    base = written(config, tmp_path / "base", oracle)
    lora = oracle.method_adapter(base, tmp_path / "lora", adapter)
    model, table = table_of(base, oracle)
    assert table.uncalled == {"model.layers.0.conv.conv", "model.layers.2.conv.conv"}
    assert compile_adapter(lora, table, torch.float32, model=model).facts.unused == ("model.layers.*.conv.conv",)


def test_where_peft_refuses_it_or_runs_half_of_it(oracle: ModuleType, tmp_path: Path) -> None:
    """PEFT takes no LoRA on Mamba's; RecurrentGemma calls its convolution in prompts and not in decodes."""
    base = written(LFM2, tmp_path / "lfm2", oracle)
    config = LoraConfig(r=32, target_modules=["conv.conv"])
    lora = oracle.method_adapter(base, tmp_path / "lora", config)
    text = (lora / "adapter_config.json").read_text()
    for other, name in ((MAMBA, "conv1d"), (RECURRENT, "conv_1d")):
        (lora / "adapter_config.json").write_text(text.replace("conv.conv", name))
        model, table = table_of(written(other, tmp_path / name, oracle), oracle)
        with pytest.raises(InvalidAdapter, match="neither linear layers nor embeddings"):
            compile_adapter(lora, table, torch.float32, model=model)
