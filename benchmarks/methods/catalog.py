"""A configuration of each PEFT method for the methods benchmark, at usual sizes: rank 16 where there is a rank.

LoRA comes first, since all others are compared with it; those that compiled slowest come last.
"""

from collections.abc import Callable, Mapping
from typing import Any

import peft

from ..models.llama import LINEARS, RANK

Make = Callable[[], peft.PeftConfig]
TASK = {"task_type": "CAUSAL_LM"}


def _on(config: type[Any], **options: Any) -> Make:
    """Return a maker of a configuration on all linears."""
    return lambda: config(**{**TASK, "target_modules": list(LINEARS), **options})


def _lora(**options: Any) -> Make:
    return _on(peft.LoraConfig, **{"r": RANK, "lora_alpha": RANK, **options})


def _ia3() -> peft.PeftConfig:
    return peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK)


def _norms() -> peft.PeftConfig:
    return peft.LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm"], **TASK)


def _adaption() -> peft.PeftConfig:
    return peft.AdaptionPromptConfig(adapter_len=10, adapter_layers=2, **TASK)


CATALOG: Mapping[str, Make] = {
    "LoRA": _lora(),
    "LoRA with biases": _lora(lora_bias=True),
    "DoRA": _lora(use_dora=True),
    "LoRA and the norms": _lora(modules_to_save=["norm"]),
    "LoRA, 4 tokens": _lora(trainable_token_indices=[5, 9, 30, 31]),
    "IA3": _ia3,
    "norms": _norms,
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=20, **TASK),
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=20, **TASK),
    "LLaMA-Adapter": _adaption,
    "AdaLoRA": _on(peft.AdaLoraConfig, init_r=RANK, target_r=RANK, lora_alpha=RANK, total_step=10),
    "VeRA": _on(peft.VeraConfig, r=64),
    "VB-LoRA": _on(peft.VBLoRAConfig, r=4, num_vectors=64, vector_length=64),
    "DeLoRA": _on(peft.DeloraConfig, r=RANK),
    "GraLoRA": _on(peft.GraloraConfig, r=RANK, alpha=RANK),
    "MiSS": _on(peft.MissConfig, r=RANK),
    "HRA": _on(peft.HRAConfig, r=8),
    "OFT": _on(peft.OFTConfig, oft_block_size=32),
    "BOFT": _on(peft.BOFTConfig, boft_block_size=8),
    "RoAD": _on(peft.RoadConfig),
    "LoHa": _on(peft.LoHaConfig, r=8, alpha=8),
    "LoKr": _on(peft.LoKrConfig, r=8, alpha=8),
    "RandLoRA": _on(peft.RandLoraConfig, r=32, randlora_alpha=32),
    "C3A": _on(peft.C3AConfig, block_size=256),
    "SHiRA": _on(peft.ShiraConfig, r=RANK),
    "WaveFT": _on(peft.WaveFTConfig, n_frequency=1000),
    "FourierFT": _on(peft.FourierFTConfig, n_frequency=1000),
}
