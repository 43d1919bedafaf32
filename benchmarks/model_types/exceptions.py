"""Fields of single types of model of which a name does not tell what fits, by type: functions of the shape."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .shrinking import Shape

Fields = dict[str, Any]


def _always(**fields: Any) -> Callable[["Shape"], Fields]:
    return lambda _: fields


def _experts(shape: "Shape") -> Fields:
    return {"n_routed_experts": shape.experts, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1} | {
        "topk_group": 1,
        "first_k_dense_replace": 1,
    }


def _all_heads(shape: "Shape") -> Fields:
    return {"num_key_value_heads": shape.heads}


def _inner_heads(name: str) -> Callable[["Shape"], Fields]:
    """Return a function that gives as many heads as twice the hidden size has."""
    return lambda shape: {name: 2 * shape.hidden // shape.head_dim}


def _kinds(*kinds: str) -> Callable[["Shape"], Fields]:
    """Return a function that gives layers of these kinds in turn, each once at least."""

    def fields(shape: "Shape") -> Fields:
        count = max(shape.layers, len(kinds))
        return {"layer_types": [kinds[i % len(kinds)] for i in range(count)], "num_hidden_layers": count}

    return fields


def _falcon_h1(shape: "Shape") -> Fields:
    return {"mamba_d_ssm": 2 * shape.hidden, "mamba_n_heads": 2 * shape.hidden // shape.head_dim} | {
        "mamba_d_head": shape.head_dim
    }


def _dbrx(shape: "Shape") -> Fields:
    ffn = {"hidden_size": shape.hidden, "ffn_hidden_size": shape.ffn, "moe_num_experts": 4, "moe_top_k": 2}
    return {
        "attn_config": {"kv_n_heads": shape.kv_heads, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": ffn,
        "n_layers": shape.layers,
    }


def _indexed(shape: "Shape") -> Fields:
    return {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": shape.head_dim,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ple_embed_dim": 16,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 2,
    }


def _sharing(shape: "Shape") -> Fields:
    return {"num_hidden_layers": 4, "num_kv_shared_layers": 2} | {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [shape.ffn] * 4,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    }


def _sharing_wide(shape: "Shape") -> Fields:
    """Layers that see everything have wider heads than those with a window."""
    kinds = ["sliding_attention", "full_attention"] * 2
    return {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": kinds,
        "global_head_dim": 2 * shape.head_dim,
    }


def _zamba(shape: "Shape") -> Fields:
    """The attention of hybrid layers reads twice the hidden size: the states and the embeddings."""
    kinds = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
    width = {"attention_hidden_size": 2 * shape.hidden, "attention_head_dim": 2 * shape.hidden // shape.heads}
    return _all_heads(shape) | width | {"layers_block_type": kinds, "num_hidden_layers": len(kinds)}


def _zamba2(shape: "Shape") -> Fields:
    kinds = {name: value for name, value in _zamba(shape).items() if not name.startswith("attention_")}
    return kinds | {"n_mamba_heads": 2 * shape.hidden // shape.head_dim}


def _blt(_: "Shape") -> Fields:
    return {"encoder_hash_byte_group_vocab": 100, "encoder_hash_byte_group_size": [3, 4]}


def _reformer(shape: "Shape") -> Fields:
    return {
        "is_decoder": True,
        "axial_pos_shape": [8, shape.positions // 8],
        "axial_pos_embds_dim": [shape.hidden // 4, shape.hidden - shape.hidden // 4],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "attn_layers": ["local", "lsh"],
    }


EXCEPTIONS: Mapping[str, Callable[["Shape"], Fields]] = {
    "bamba": lambda shape: {"attn_layer_indices": [1]},
    "blt": _blt,
    "codegen": lambda shape: {"n_head": 4},
    "dbrx": _dbrx,
    "deepseek_v2": _experts,
    "dots1": _experts,
    "dots3_note": lambda shape: {"text_config": _all_heads(shape)},
    "dots3_note_text": _all_heads,
    "falcon_h1": _falcon_h1,
    "gemma3n_text": _sharing,
    "gemma4_text": _sharing_wide,
    "granitemoehybrid": _kinds("linear_attention", "full_attention"),
    "jamba": _always(attn_layer_period=2, attn_layer_offset=1, num_hidden_layers=3),
    "lfm2": _kinds("conv", "full_attention"),
    "lfm2_moe": lambda shape: _kinds("conv", "full_attention", "conv")(shape) | {"num_dense_layers": 1},
    "mamba2": _inner_heads("num_heads"),
    "mimo_v2_flash": lambda shape: _all_heads(shape) | {"swa_num_key_value_heads": shape.heads},
    "qwen4_exp": lambda shape: {"text_config": _indexed(shape)},
    "qwen4_exp_text": _indexed,
    "recurrent_gemma": _always(num_hidden_layers=3),
    "reformer": _reformer,
    "xmod": _always(default_language="en_XX"),
    "zamba": _zamba,
    "zamba2": _zamba2,
}
