"""Writes `fixture/`: tiny bases, adapters on them as AdapterHub's own library saves them, and its answers.

That library pins another transformers, so it runs in an environment of its own, once; the tests read what it wrote:

    python -m venv VENV && VENV/bin/pip install torch==2.13.0 adapters==1.3.0
    VENV/bin/python tests/adapters/adapterhub/make_fixture.py
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

import adapters
from adapters import (
    AdapterPlusConfig,
    ConfigUnion,
    DoRAConfig,
    DoubleSeqBnConfig,
    DvoRAConfig,
    IA3Config,
    LoRAConfig,
    MAMConfig,
    MTLLoRAConfig,
    ParBnConfig,
    PrefixTuningConfig,
    SeqBnConfig,
    VeraConfig,
)

FOLDER = Path(__file__).parent / "fixture"
PROMPT = [5, 17, 42, 9, 7, 25, 31, 8]
NEW_TOKENS = 12

_TOKENS = {"vocab_size": 48, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    **_TOKENS,
}
BASES = {
    "llama": LlamaConfig(**_SHAPE),
    "mistral": MistralConfig(sliding_window=None, **_SHAPE),
    "qwen2": Qwen2Config(**_SHAPE),
    "gpt2": GPT2Config(n_embd=16, n_inner=24, n_layer=2, n_head=2, n_positions=64, **_TOKENS),
    "qwen3": Qwen3Config(head_dim=8, **_SHAPE),
    "gemma2": Gemma2Config(head_dim=8, query_pre_attn_scalar=8, **_SHAPE),
    "gemma3_text": Gemma3TextConfig(head_dim=8, query_pre_attn_scalar=8, **_SHAPE),
    "phi": PhiConfig(**_SHAPE),
}
BOTH = {"mh_adapter": True, "output_adapter": True}
EVERYWHERE = {"intermediate_lora": True, "output_lora": True, "attn_matrices": ["q", "k", "v"]}
SQUARE = {"intermediate_lora": False, "attn_matrices": ["q"]}  # VeRA's factors have one shape for all modules
CASES = {
    "llama": {
        "houlsby": DoubleSeqBnConfig(reduction_factor=4),
        "pfeiffer": SeqBnConfig(reduction_factor=4),
        "parallel": ParBnConfig(reduction_factor=4),
        "plus": AdapterPlusConfig(reduction_factor=4, stochastic_depth=0.0),
        "pfeiffer_both": SeqBnConfig(reduction_factor=4, non_linearity="leakyrelu", leave_out=[0], **BOTH),
        "parallel_both": ParBnConfig(reduction_factor=4, non_linearity="gelu", scaling="learned", **BOTH),
        "factors": DoubleSeqBnConfig(reduction_factor={"0": 4, "default": 40}, non_linearity="tanh", scaling=2.0),
        "lora": LoRAConfig(r=3, alpha=7, **EVERYWHERE),
        "lora_default": LoRAConfig(leave_out=[1]),
        "dora": DoRAConfig(r=2, alpha=6, **EVERYWHERE),
        "ia3": IA3Config(alpha=2, output_lora=True),
        "vera": VeraConfig(r=4, vera_d=0.5, vera_b=0.5, **SQUARE),
        "dvora": DvoRAConfig(r=4, vera_d=0.5, vera_b=0.5, **SQUARE),
        "multitask": MTLLoRAConfig(r=3, n_up_projection=2, weights_sharpness=0.5),
        "prefix": PrefixTuningConfig(prefix_length=5, bottleneck_size=6),
        "prefix_flat": PrefixTuningConfig(prefix_length=3, flat=True),
        "mam": MAMConfig(PrefixTuningConfig(prefix_length=4, bottleneck_size=5), ParBnConfig(reduction_factor=4)),
        "union": ConfigUnion(
            PrefixTuningConfig(prefix_length=2, bottleneck_size=4, non_linearity="gelu_new"),
            SeqBnConfig(reduction_factor=4),
            LoRAConfig(r=2, alpha=3),
        ),
    },
    "mistral": {
        "pfeiffer": SeqBnConfig(reduction_factor=4, **BOTH),
        "lora": LoRAConfig(r=2, **EVERYWHERE),
        "prefix": PrefixTuningConfig(prefix_length=5, bottleneck_size=6),
    },
    "qwen2": {
        "houlsby": DoubleSeqBnConfig(reduction_factor=4),
        "pfeiffer": SeqBnConfig(reduction_factor=4, **BOTH),
        "parallel": ParBnConfig(reduction_factor=4, **BOTH),
        "lora": LoRAConfig(r=2, **EVERYWHERE),
        "ia3": IA3Config(),
    },
    "gpt2": {
        "houlsby": DoubleSeqBnConfig(reduction_factor=4, non_linearity="gelu_new"),
        "pfeiffer": SeqBnConfig(reduction_factor=4, **BOTH),
        "parallel": ParBnConfig(reduction_factor=4, **BOTH),
        "lora": LoRAConfig(r=3, alpha=5, **EVERYWHERE),
        "lora_query_value": LoRAConfig(r=2),
        "ia3": IA3Config(alpha=2, output_lora=True),
        "prefix": PrefixTuningConfig(prefix_length=5, bottleneck_size=6),
        "union": ConfigUnion(
            PrefixTuningConfig(prefix_length=2, flat=True),
            ParBnConfig(reduction_factor=4, **BOTH),
            LoRAConfig(r=2, intermediate_lora=True, output_lora=True),
        ),
    },
    "qwen3": {"lora": LoRAConfig(r=2, **EVERYWHERE)},
    "gemma2": {"lora": LoRAConfig(r=2, **EVERYWHERE), "ia3": IA3Config()},
    "gemma3_text": {"lora": LoRAConfig(r=2, **EVERYWHERE)},
    "phi": {"lora": LoRAConfig(r=2, **EVERYWHERE)},
}


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for architecture in BASES:
        _write_base(architecture)
        answers = {"base": _answers(_load(architecture))}
        for seed, (case, config) in enumerate(CASES[architecture].items(), 1):
            answers[case] = _write_adapter(architecture, case, config, seed)
        text = json.dumps(answers).replace("]], ", "]],\n ")
        (FOLDER / architecture / "answers.json").write_text(text + "\n")


def _write_base(architecture: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(BASES[architecture])
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + noise * 0.2 if parameter.dim() == 1 else noise * 0.4
    model.save_pretrained(FOLDER / architecture)
    (FOLDER / architecture / "generation_config.json").unlink(missing_ok=True)


def _load(architecture: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER / architecture, attn_implementation="eager").eval()


def _write_adapter(architecture: str, case: str, config: Any, seed: int) -> Any:
    model = _load(architecture)
    adapters.init(model)
    torch.manual_seed(seed)
    model.add_adapter(case, config=config, set_active=True)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f"s.{case}." in name:  # adapters, loras, prefix_tunings, shared_parameters
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    folder = FOLDER / architecture / case
    if "prefix" in json.dumps(config.to_dict()):
        _save_pickled(model, folder, case)
    else:
        model.save_adapter(str(folder), case, with_head=False, use_safetensors=True)
    (folder / "adapter.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_interface.json").unlink(missing_ok=True)
    saved = json.loads((folder / "adapter_config.json").read_text())
    saved["model_name"] = architecture  # rather than where it lay
    (folder / "adapter_config.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
    return _answers(model.eval())


def _save_pickled(model: Any, folder: Path, case: str) -> None:
    """Save as the library can save prefixes, of which every layer has a copy, and convert as `docs/methods.md` says."""
    model.save_adapter(str(folder), case, with_head=False)
    pickled = folder / "pytorch_adapter.bin"
    tensors = torch.load(pickled, weights_only=True)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "adapter.safetensors")
    pickled.unlink()


@torch.no_grad()
def _answers(model: Any) -> Any:
    """logits: (tokens of the prompt, vocabulary). tokens: greedily, whatever they are. margin: the least of theirs."""
    ids = [*PROMPT]
    margins = []
    for _ in range(NEW_TOKENS):
        best = model(torch.tensor([ids])).logits[0, -1].topk(2)
        margins.append(float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    logits = model(torch.tensor([PROMPT])).logits[0]
    rounded = [[round(value, 5) for value in row] for row in logits.tolist()]
    return {"tokens": ids[len(PROMPT) :], "margin": round(min(margins), 5), "logits": rounded}


if __name__ == "__main__":
    main()
