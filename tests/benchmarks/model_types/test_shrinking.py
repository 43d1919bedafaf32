"""Any configuration becomes small, and keeps a layer of each kind."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.model_types.shrinking import Shape, small_config

MOST_PARAMETERS = 3_000_000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hidden", [None, 32, 160])
@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3", "qwen3_5", "gemma3", "longcat_flash", "gpt_neo"])
def test_a_small_model_can_be_made(model_type: str, hidden: int | None) -> None:
    shape = Shape.drawn(4, hidden)
    config = small_config(model_type, shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < MOST_PARAMETERS
    assert config.get_text_config().vocab_size == shape.vocabulary


def test_sizes_may_be_given() -> None:
    shape = Shape.drawn(0, layers=5, heads=2, kv_heads=1, tied=1)
    config = small_config("mistral", shape)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    assert heads == (2, 1, config.hidden_size // 2)
    assert config.num_hidden_layers == 5
    assert config.tie_word_embeddings
    assert small_config("lfm2_moe", shape).layer_types[3:] == ["conv", "full_attention"]


def test_a_layer_of_each_kind_stays() -> None:
    assert set(small_config("qwen3_next", Shape.drawn(0)).layer_types) == {"linear_attention", "full_attention"}
    config = small_config("afmoe", Shape.drawn(0))
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.num_hidden_layers == len(config.layer_types)
