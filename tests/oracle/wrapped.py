"""Tiny random multimodal models: a decoder of the kit's size inside the class that its checkpoints have."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

from .models import BOS, EOS, PAD, VOCAB_SIZE, drawn, read_model, tiny_tokenizer

_TEXT: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
_TOWER: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_QWEN_TOWER = {"depth": 2, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64, "fullatt_block_indexes": [1]}
_IMAGES = {"image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292, "vision_end_token_id": 293}
_GEMMA = {
    "num_hidden_layers": 3,
    "sliding_window": 24,
    "query_pre_attn_scalar": 20,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def _wrapped(
    config: type[PretrainedConfig], text: dict[str, Any], tower: dict[str, Any], **own: Any
) -> Callable[[], PretrainedConfig]:
    return lambda: config(text_config={**_TEXT, **text}, vision_config=tower, **own)


WRAPPED: dict[str, Callable[[], PretrainedConfig]] = {
    "gemma3": _wrapped(
        transformers.Gemma3Config, _GEMMA, {**_TOWER, "model_type": "siglip_vision_model"}, image_token_id=290
    ),
    "llava": _wrapped(
        transformers.LlavaConfig,
        {"model_type": "llama"},
        {**_TOWER, "model_type": "clip_vision_model"},
        image_token_id=290,
    ),
    "llava_next": _wrapped(
        transformers.LlavaNextConfig,
        {"model_type": "mistral", "sliding_window": 24},
        {**_TOWER, "model_type": "clip_vision_model"},
        image_token_id=290,
    ),
    "mistral3": _wrapped(
        transformers.Mistral3Config,
        {"model_type": "mistral", "sliding_window": None},
        {**_TOWER, "model_type": "pixtral"},
        image_token_id=290,
    ),
    "qwen2_vl": _wrapped(
        transformers.Qwen2VLConfig,
        {"rope_parameters": _SECTIONS, "tie_word_embeddings": True},
        {"depth": 2, "num_heads": 2, "embed_dim": 32, "hidden_size": 64},
        tie_word_embeddings=True,
        **_IMAGES,
    ),
    "qwen2_5_vl": _wrapped(
        transformers.Qwen2_5_VLConfig, {"rope_parameters": _SECTIONS}, {**_QWEN_TOWER, "hidden_size": 32}, **_IMAGES
    ),
    "qwen3_vl_moe": _wrapped(
        transformers.Qwen3VLMoeConfig,
        {"rope_parameters": _SECTIONS, **_EXPERTS},
        {**_QWEN_TOWER, "hidden_size": 32, "deepstack_visual_indexes": [1]},
        **_IMAGES,
    ),
    "idefics3": _wrapped(
        transformers.Idefics3Config, {"model_type": "llama"}, {**_TOWER}, image_token_id=290, pad_token_id=PAD
    ),
}


def text_model(wrapped: Path, folder: Path) -> Path:
    """Write the text model of a checkpoint of `wrapped_model` as one of its own class. Returns the folder."""
    own = read_model(wrapped)
    config = own.config.get_text_config()
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.base_model.load_state_dict(own.get_decoder().state_dict())
    model.lm_head.load_state_dict(own.lm_head.state_dict())
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def wrapped_model(name: str, seed: int, folder: Path) -> Path:
    """Write a random float32 model of a key of WRAPPED, towers and all, and its tokenizer. Returns the folder."""
    config = WRAPPED[name]()
    model = transformers.AutoModelForImageTextToText.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(drawn(model, key, parameter, generator))
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
