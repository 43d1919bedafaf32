"""Small GGUF files: a model's weights in blocks, its shape and its tokenizer, as llama.cpp writes them.

Written here byte by byte, since the package `gguf` need not be installed; transformers reads some architectures
without it, too.
"""

import json
import struct
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

_U32, _F32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9  # types of metadata
_PLAIN, _Q8_0 = 0, 8  # types of tensors: float32, and blocks of 32 int8 with a float16 scale
_BLOCK, _ALIGNMENT = 32, 32
_CONTROL, _NORMAL = 3, 1

Names = Mapping[str, str]
_SHARED: Names = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_LFM2: Names = {
    "model.embedding_norm": "token_embd_norm",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "operator_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "conv.conv": "shortconv.conv",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
}


def gguf_model(plain: Path, path: Path) -> Path:
    """Write a plain model's folder as one GGUF file, its matrices in blocks of 8 bits, and return the file.

    Takes the types in GGUF_TYPES.
    """
    config = AutoConfig.from_pretrained(plain)
    weights = load_file(plain / "model.safetensors")
    prefix = config.model_type
    shape = GGUF_TYPES[prefix](config)
    metadata = {"general.architecture": prefix, **{f"{prefix}.{name}": value for name, value in shape.items()}}
    metadata |= _tokenizer(plain, config.vocab_size)
    tensors = {_name(key): _laid_out(key, tensor, config) for key, tensor in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_file(metadata, tensors))
    return path


def _decoder(config: Any) -> dict[str, Any]:
    return {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None) or config.norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }


def _lfm2(config: Any) -> dict[str, Any]:
    heads = [config.num_key_value_heads if kind == "full_attention" else 0 for kind in config.layer_types]
    feed_forward = (
        int(2 * config.intermediate_size / 3) if config.block_auto_adjust_ff_dim else config.intermediate_size
    )
    if config.block_auto_adjust_ff_dim:
        step = config.block_multiple_of
        feed_forward = step * (-(-int(config.block_ffn_dim_multiplier * feed_forward) // step))
    own = {"attention.head_count_kv": heads, "shortconv.l_cache": config.conv_L_cache}
    return _decoder(config) | own | {"feed_forward_length": feed_forward}


GGUF_TYPES: Mapping[str, Callable[[Any], dict[str, Any]]] = {"llama": _decoder, "qwen2": _decoder, "lfm2": _lfm2}


def _name(key: str) -> str:
    module, _, leaf = key.rpartition(".")
    layer, names = "", {**_SHARED, **_LFM2}
    if module.startswith("model.layers."):
        _, _, index, module = module.split(".", 3)
        layer = f"blk.{index}."
    return f"{layer}{names[module]}.{leaf}"


def _laid_out(key: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Return a tensor as llama.cpp has it: rotary halves of Llama's heads interleaved, kernels without an axis of 1."""
    if key.endswith("conv.conv.weight"):
        return tensor.squeeze(1)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    if config.model_type == "llama" and (count := heads.get(key.split(".")[-2])):
        halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    return tensor


def _tokenizer(plain: Path, count: int) -> dict[str, Any]:
    own = json.loads((plain / "tokenizer.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokens = [tokenizer.convert_ids_to_tokens(i) for i in range(count)]
    special = set(tokenizer.all_special_ids) | {token["id"] for token in own["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [_CONTROL if i in special else _NORMAL for i in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in own["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _file(metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bytes:
    kinds = {
        name: _Q8_0 if tensor.dim() == 2 and "conv.conv" not in name else _PLAIN for name, tensor in tensors.items()
    }
    data = [_padded(_blocks(t) if kinds[n] == _Q8_0 else t.float().numpy().tobytes()) for n, t in tensors.items()]
    ends = [0]
    for piece in data:
        ends.append(ends[-1] + len(piece))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _text(key) + _value(value)
    for (name, tensor), (start, _) in zip(tensors.items(), pairwise(ends), strict=True):
        dims = tensor.shape[::-1]
        head += _text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", kinds[name], start)
    return _padded(head) + b"".join(data)


def _blocks(matrix: torch.Tensor) -> bytes:
    rows = matrix.float().reshape(-1, _BLOCK)
    scales = (rows.abs().amax(1, keepdim=True) / 127).half()
    codes = (rows / scales.float().clamp(min=1e-12)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scales.view(torch.int8), codes], 1).numpy().tobytes()


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        packed = [_value(entry) for entry in value]
        return (
            struct.pack("<I", _ARRAY) + packed[0][:4] + struct.pack("<Q", len(value)) + b"".join(p[4:] for p in packed)
        )
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    kind, form = (_BOOL, "?") if isinstance(value, bool) else (_F32, "f") if isinstance(value, float) else (_U32, "I")
    return struct.pack(f"<I{form}", kind, value)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(piece: bytes) -> bytes:
    return piece + b"\0" * (-len(piece) % _ALIGNMENT)
