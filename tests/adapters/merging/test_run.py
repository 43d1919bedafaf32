"""Whole merges: against PEFT's on several architectures, tensor by tensor, and what comes out as a file."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peftserve.adapters.merging.kinds import KINDS, Options, Ranks

LIKE_PEFT = [name for name, kind in KINDS.items() if kind.like_peft]
TARGETS: dict[str, tuple[Any, Any]] = {
    "llama": (["q_proj", "down_proj"], ["q_proj", "v_proj", "embed_tokens", "lm_head"]),
    "qwen3": (r".*layers\.\d\.self_attn\.[qk]_proj", r".*layers\.1\..*(q|up)_proj"),
    "gpt2": (["c_attn", "wte"], ["c_attn", "mlp.c_proj"]),
    "phi3": (["qkv_proj"], ["qkv_proj", "gate_up_proj"]),
    "qwen3_moe": (["q_proj", "o_proj"], ["q_proj", "v_proj"]),
}


@pytest.mark.parametrize("architecture", TARGETS)
def test_factors_are_those_of_peft(
    architecture: str, make_adapters: Any, merge: Any, peft_merger: Any, tensors_of: Any
) -> None:
    """Every kind, with a negative weight, different targets and scalings; different ranks where the kind joins them."""
    first, second = TARGETS[architecture]
    last = "c_attn" if architecture == "gpt2" else "qkv_proj" if architecture == "phi3" else "q_proj"
    base, (a, b, c) = make_adapters(
        architecture,
        {"r": 6, "lora_alpha": 12, "target_modules": first, "alpha_pattern": {last: 5}},
        {"r": 6, "lora_alpha": 4, "target_modules": second},
        {"r": 4, "lora_alpha": 9, "target_modules": second, "rank_pattern": {last: 3}},
    )
    peft = peft_merger(base, [a, b, c])
    for kind in LIKE_PEFT:
        equal = KINDS[kind].ranks is Ranks.EQUAL
        weighted = [(a, 0.7), (b, -0.4)] if equal else [(a, 0.7), (b, -0.4), (c, 1.3)]
        options = {"combination_type": kind, "density": 0.3, "seed": 7, "svd_rank": None if equal else 5}
        if kind.endswith("ties"):
            options["majority_sign_method"] = "frequency"
        ours, theirs = tensors_of(merge(weighted, **options)), peft.merge(weighted, Options(**options))
        ours = {key: tensor for key, tensor in ours.items() if "lora_" in key}
        assert ours.keys() == theirs.keys(), kind
        for key, tensor in theirs.items():
            torch.testing.assert_close(
                ours[key], tensor, rtol=2e-5, atol=2e-6, msg=lambda text, k=kind, n=key: f"{k} {n}: {text}"
            )


def test_peft_loads_a_merge_and_computes_the_weighted_sum(make_adapters: Any, merge: Any) -> None:
    """`cat` is the exact sum, in every spelling: rsLoRA, patterns, biases of B, chosen layers, left-out modules.
    `linear` keeps the ranks of modules where these differ.
    """
    base, adapters = make_adapters(
        "llama_biased",
        {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"], "lora_bias": True},
        {"r": 5, "target_modules": "all-linear", "exclude_modules": ["q_proj"], "rank_pattern": {"up_proj": 2}},
        {"r": 3, "target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"r": 4, "lora_alpha": 3, "rank_pattern": {"v_proj": 2}, "target_modules": ["v_proj", "k_proj"]},
        {"r": 4, "lora_alpha": 3, "rank_pattern": {"layers.1.*v_proj": 2, "v_proj": 2}, "target_modules": ["v_proj"]},
    )
    _draw_biases(adapters[0])
    weighted = list(zip(adapters[:3], (0.7, -0.5, 1.0), strict=True))
    merged = merge(weighted, combination_type="cat")
    exact = _logits(base, *weighted)
    torch.testing.assert_close(_logits(base, (merged, 1.0)), exact, rtol=1e-4, atol=1e-4)
    config = json.loads((merged / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["lora_bias"]) == (12, 12, False, True)

    alone = merge([(adapters[0], 1.0)], combination_type="svd")  # PEFT's rule: a single one is `linear`, hence itself
    torch.testing.assert_close(_logits(base, (alone, 1.0)), _logits(base, (adapters[0], 1.0)), rtol=1e-4, atol=1e-4)

    linear = merge([(adapters[3], 0.5), (adapters[4], 0.5)], combination_type="linear")
    config = json.loads((linear / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (4, {"v_proj": 2}, {"v_proj": 2})
    assert not torch.allclose(_logits(base, (linear, 1.0)), exact)  # it loads: PEFT checks every shape


def _draw_biases(adapter: Path) -> None:
    """Let the biases of B, which PEFT begins with zeros, be random."""
    file = adapter / "adapter_model.safetensors"
    found = load_file(file)
    save_file({key: torch.randn(t.shape) if key.endswith(".bias") else t for key, t in found.items()}, file)


def _logits(base: Path, *weighted: tuple[Path, float]) -> torch.Tensor:
    """Return a base's logits with the weighted sum of adapters, each active at once in PEFT."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    names = [f"n{i}" for i in range(len(weighted))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(model, weighted[0][0], adapter_name=names[0])
        for name, (path, _) in zip(names[1:], weighted[1:], strict=True):
            model.load_adapter(path, name)
    model.base_model.set_adapter(names)
    for module in model.modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict):
            for name, (_, weight) in zip(names, weighted, strict=True):
                if name in scaling:
                    scaling[name] *= weight
    with torch.no_grad():
        logits: torch.Tensor = model(torch.arange(3, 40).reshape(1, -1)).logits
    return logits
