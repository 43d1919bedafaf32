"""Configurations of small models that keep state beside keys and values: recurrent, convolutional and mixed ones."""

from typing import Any

import transformers
from transformers import PretrainedConfig

_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_MLA = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}

HYBRIDS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen3_next": (
        transformers.Qwen3NextConfig,
        {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 48, "num_hidden_layers": 3},
    ),
    "qwen3_5_text": (transformers.Qwen3_5TextConfig, {**_DELTA, "num_hidden_layers": 3}),
    "olmo_hybrid": (transformers.OlmoHybridConfig, {**_DELTA, "num_hidden_layers": 3}),
    "kimi_linear": (
        transformers.KimiLinearConfig,
        {**_MLA, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "lfm2": (
        transformers.Lfm2Config,
        {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "conv_L_cache": 3},
    ),
    "granitemoehybrid": (
        transformers.GraniteMoeHybridConfig,
        {
            **_MAMBA,
            "layer_types": ["mamba", "attention", "mamba"],
            "num_hidden_layers": 3,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 48,
        },
    ),
    "falcon_h1": (transformers.FalconH1Config, {**_MAMBA, "head_dim": 16, "mamba_d_ssm": 128}),
    "nemotron_h": (
        transformers.NemotronHConfig,
        {
            "head_dim": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 2,
            "time_step_min": 1e-6,  # which transformers applies to prompts, and not to single tokens
            "hybrid_override_pattern": "M-*M",
            "num_hidden_layers": 4,
            "chunk_size": 16,
        },
    ),
    "mamba2": (
        transformers.Mamba2Config,
        {"state_size": 16, "expand": 2, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
    ),
    # The rest forget their state at a chunk of several tokens, share attention, or name their states otherwise.
    "mamba": (transformers.MambaConfig, {"state_size": 16, "expand": 2, "time_step_rank": 8}),
    "jamba": (
        transformers.JambaConfig,
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 16,
            "mamba_d_conv": 4,
            "mamba_dt_rank": 8,
        },
    ),
    "zamba": (
        transformers.ZambaConfig,
        {
            "num_hidden_layers": 5,
            "num_key_value_heads": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_dt_rank": 8,
        },
    ),
    "minimax": (transformers.MiniMaxConfig, {"num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8}),
    "zaya": (transformers.ZayaConfig, {"head_dim": 16}),
    # These keep their state in places of their own.
    "recurrent_gemma": (transformers.RecurrentGemmaConfig, {"attention_window_size": 16, "num_hidden_layers": 3}),
    "rwkv": (transformers.RwkvConfig, {"rescale_every": 1, "num_hidden_layers": 3}),
}
