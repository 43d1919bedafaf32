"""Which positions a base takes that is given none, as PEFT gives none beside virtual tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from peftserve.adapters.peft.prefill import counts_otherwise, needs_token_ids

_SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_HEADS: dict[str, Any] = {"num_attention_heads": 4, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
_MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2}


def llama() -> transformers.PretrainedConfig:
    return transformers.LlamaConfig(**_SIZES, **_HEADS)


def opt() -> transformers.PretrainedConfig:
    return transformers.OPTConfig(**_SIZES, **_HEADS, ffn_dim=48, word_embed_proj_dim=32)


def roberta() -> transformers.PretrainedConfig:
    return transformers.RobertaConfig(**_SIZES, **_HEADS, max_position_embeddings=64, is_decoder=True)


def bamba() -> transformers.PretrainedConfig:
    return transformers.BambaConfig(**_SIZES, **_HEADS, **_MAMBA, num_key_value_heads=2, attn_layer_indices=[1])


@pytest.mark.parametrize(("make", "otherwise"), [(llama, False), (opt, False), (roberta, True), (bamba, True)])
def test_positions_of_who_is_given_none(make: Callable[[], transformers.PretrainedConfig], otherwise: bool) -> None:
    """RoBERTa begins behind its padding token, and Bamba begins anew with each token that it generates."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(make(), attn_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert counts_otherwise(model) == otherwise
    assert not needs_token_ids(model)
