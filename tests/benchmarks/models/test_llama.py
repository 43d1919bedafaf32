from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from peftserve.adapters.files import content_digest

Script = Callable[[str], ModuleType]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_adapters_are_in_folders_named_by_their_digests(script: Script, tmp_path: Path) -> None:
    llama = script("models.llama")
    config = LlamaConfig(**SMALL, vocab_size=64, num_hidden_layers=2)
    read = llama.write_base(tmp_path / "base", config, torch.bfloat16, "cpu")
    assert read == 2 * (2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32) + 32 + 64 * 32)
    digests = llama.write_adapters(tmp_path / "base", tmp_path / "store", 3)
    assert len(set(digests)) == 3
    assert [content_digest(tmp_path / "store" / digest) for digest in digests] == digests
    tensors = load_file(tmp_path / "store" / digests[2] / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (16, 48)
    assert tensors["base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"].shape == (16, 16)


def test_no_adapters(script: Script, tmp_path: Path) -> None:
    config = LlamaConfig(**SMALL, vocab_size=64, num_hidden_layers=1)
    script("models.llama").write_base(tmp_path / "base", config, torch.float32, "cpu")
    assert script("models.llama").write_adapters(tmp_path / "base", tmp_path / "store", 0) == []
