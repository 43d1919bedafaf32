"""Random LoRA checkpoints, written by PEFT itself, in the forms that people have them."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

_STRENGTH = 0.6
"""Size of an adapter's delta beside the weight that it bypasses: enough to change the text, not to blow it up."""

_OF_FALCON = {
    "attention": ["query_key_value", "dense"],
    "mlp": ["dense_h_to_4h", "dense_4h_to_h"],
    "embedding": "word_embeddings",
    "layers": "h",
}
_MODULES: dict[str, dict[str, Any]] = {
    "bloom": {**_OF_FALCON},
    "codegen": {"attention": ["qkv_proj", "out_proj"], "mlp": ["fc_in", "fc_out"], "embedding": "wte", "layers": "h"},
    "falcon": {**_OF_FALCON},
    "gpt_neo": {
        "attention": ["q_proj", "k_proj", "v_proj", "out_proj"],
        "mlp": ["c_fc", "c_proj"],
        "embedding": "wte",
        "layers": "h",
    },
    "gpt_neox_japanese": {**_OF_FALCON, "embedding": "embed_in", "layers": "layers"},
    "gptj": {"attention": ["q_proj", "v_proj"], "mlp": ["fc_in", "fc_out"], "embedding": "wte", "layers": "h"},
    "mpt": {"attention": ["Wqkv", "out_proj"], "mlp": ["up_proj", "down_proj"], "embedding": "wte", "layers": "blocks"},
    "openai-gpt": {"attention": ["c_attn"], "mlp": ["c_fc", "mlp.c_proj"], "embedding": "tokens_embed", "layers": "h"},
    "xglm": {"attention": ["q_proj", "k_proj", "v_proj", "out_proj"], "mlp": ["fc1", "fc2"]},
    "gpt2": {"attention": ["c_attn"], "mlp": ["c_fc", "mlp.c_proj"], "embedding": "wte", "layers": "h"},
    "opt": {"attention": ["q_proj", "v_proj"], "mlp": ["fc1", "fc2"]},
    "llama4_text": {"unsupported": ["router"]},
    "phi3": {"attention": ["qkv_proj", "o_proj"], "mlp": ["gate_up_proj", "down_proj"]},
    "qwen3_5_text": {"attention": ["in_proj_qkv", "in_proj_a", "out_proj", "q_proj", "v_proj"]},
    "granitemoehybrid": {
        "attention": ["in_proj", "out_proj", "q_proj", "v_proj"],
        "mlp": ["shared_mlp.input_linear", "shared_mlp.output_linear"],
    },
}
_USUAL = {
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
    "embedding": "embed_tokens",
    "layers": "layers",
    "unsupported": [],  # linears that PEFT takes for its own and then cannot run
}


def modules_of(model_type: str) -> dict[str, Any]:
    """Return the names of the modules of a type of model, by what they are for."""
    return {**_USUAL, **_MODULES.get(model_type, {})}


def varied_adapters(model_folder: Path, folder: Path, seed: int = 0) -> list[Path]:
    """Write eight adapters in sub-folders of `folder`, no two alike in targets, ranks, scaling or type of file."""
    return [
        random_adapter(model_folder, folder / name, seed + i, **options)
        for i, (name, options) in enumerate(_variety(model_folder).items())
    ]


def _variety(model_folder: Path) -> dict[str, dict[str, Any]]:
    kind = AutoConfig.from_pretrained(model_folder).model_type
    own = modules_of(kind)
    attention, mlp, unsupported = list(own["attention"]), list(own["mlp"]), list(own["unsupported"])
    last = mlp[-1].rpartition(".")[2]
    return {
        "suffixes": {"r": 8, "lora_alpha": 16, "target_modules": attention},
        "regex": {"r": 1, "lora_alpha": 2, "target_modules": rf".*\.\d+\..*({'|'.join(mlp)})"},
        "all_rslora": {
            "r": 16,
            "lora_alpha": 32,
            "use_rslora": True,
            "target_modules": "all-linear",
            "exclude_modules": unsupported or None,
        },
        "excluded": {
            "r": 4,
            "target_modules": "all-linear",
            "exclude_modules": [attention[0], *unsupported],
            "file_dtype": torch.bfloat16,
        },
        "one_layer": {
            "r": 64,
            "lora_alpha": 64,
            "target_modules": attention + mlp,
            "layers_to_transform": [1],
            "layers_pattern": own["layers"],
            "file_dtype": torch.float16,
        },
        "patterns": {
            "r": 32,
            "lora_alpha": 16,
            "target_modules": attention + mlp,
            "rank_pattern": {attention[0]: 3, rf"{own['layers']}.1.*{last}": 5},
            "alpha_pattern": {last: 40},
        },
        "embedding_and_head": {
            "r": 8,
            "lora_alpha": 8,
            "target_modules": [str(own["embedding"]), "lm_head", attention[0]],
        },
        "rank_512": {"r": 512, "lora_alpha": 512, "target_modules": rf".*{own['layers']}\.0\..*{attention[0]}"},
    }


def random_adapter(
    model_folder: Path, folder: Path, seed: int, *, file_dtype: torch.dtype = torch.float32, **options: Any
) -> Path:
    """A checkpoint of `LoraConfig(**options)` on the model, A and B random, its tensors rounded to `file_dtype`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
        options.setdefault("fan_in_fan_out", base.config.model_type in ("gpt2", "openai-gpt"))
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
        _randomize(model, torch.Generator().manual_seed(seed))
        model.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(file_dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return folder


@torch.no_grad()
def _randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Every A and B gaussian, each delta as large as `_STRENGTH` times the weight beside it."""
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        weight = layer.get_base_layer().weight
        pairs = ((layer.lora_A, layer.lora_B), (layer.lora_embedding_A, layer.lora_embedding_B))
        a, b = next((a["default"], b["default"]) for a, b in pairs if "default" in a)
        a, b = getattr(a, "weight", a), getattr(b, "weight", b)
        size = _STRENGTH * weight.std() / (layer.scaling["default"] * a.shape[0] ** 0.5)
        a.copy_(torch.randn(a.shape, generator=generator))
        b.copy_(torch.randn(b.shape, generator=generator) * size)
