"""Tiny random models of every architecture that peftserve serves, in Hugging Face format, with a tokenizer.

Weights are drawn so that greedy text is varied and the best token stands clear of the next: blocks write more into
the residual stream than the embedding does, and norms and biases are not the identity.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from .hybrids import HYBRIDS

VOCAB_SIZE = 300
BOS, EOS, PAD = 0, 1, 2
_SPECIAL = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>"]
_PIECES = "the and ing ion ent her for tha nth int ere tio ter est ers ati hat ate all eth hes ver his oft ith fth"
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|' + ('assistant' if m.role == 'assistant' else 'user') + '|>' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _decoder(config: type[PretrainedConfig], **own: Any) -> Callable[..., PretrainedConfig]:
    """Return a factory of small configurations, with the fields that most decoders share and `own` ones."""
    shared = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    return lambda **overrides: config(**{**shared, **own, **overrides})


ARCHITECTURES: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": _decoder(transformers.LlamaConfig, tie_word_embeddings=False),
    "llama_biased": _decoder(transformers.LlamaConfig, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "mistral": _decoder(transformers.MistralConfig, sliding_window=24, tie_word_embeddings=False),
    "qwen2": _decoder(transformers.Qwen2Config, tie_word_embeddings=True),
    "qwen3": _decoder(transformers.Qwen3Config, head_dim=32, tie_word_embeddings=True),
    "gemma2": _decoder(
        transformers.Gemma2Config,
        head_dim=32,
        sliding_window=24,
        query_pre_attn_scalar=20,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=12.0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gemma3": _decoder(
        transformers.Gemma3TextConfig,
        head_dim=32,
        num_hidden_layers=3,
        sliding_window=24,
        query_pre_attn_scalar=20,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "mixtral": _decoder(
        transformers.MixtralConfig, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=False
    ),
    "qwen2_moe": _decoder(
        transformers.Qwen2MoeConfig,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=48,
        tie_word_embeddings=False,
    ),
    "qwen3_moe": _decoder(
        transformers.Qwen3MoeConfig,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        tie_word_embeddings=False,
    ),
    "gpt_oss": _decoder(
        transformers.GptOssConfig,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=24,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        layer_types=["sliding_attention", "full_attention"],
    ),
    "deepseek_v3": _decoder(
        transformers.DeepseekV3Config,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        first_k_dense_replace=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        n_group=1,
        topk_group=1,
        tie_word_embeddings=False,
    ),
    "llama4": _decoder(
        transformers.Llama4TextConfig,
        head_dim=16,
        num_hidden_layers=3,
        no_rope_layer_interval=3,
        attention_chunk_size=16,
        floor_scale=8,
        attn_scale=0.5,
        intermediate_size_mlp=96,
        num_local_experts=4,
        moe_layers=[1],
        tie_word_embeddings=False,
    ),
    "phi3": _decoder(transformers.Phi3Config, tie_word_embeddings=False, original_max_position_embeddings=256),
    "gpt2": lambda **overrides: transformers.GPT2Config(
        **{
            "vocab_size": VOCAB_SIZE,
            "n_positions": 256,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            **overrides,
        }
    ),
    "gemma4": _decoder(
        transformers.Gemma4TextConfig,
        head_dim=16,
        global_head_dim=16,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB_SIZE,
        num_hidden_layers=4,
        num_kv_shared_layers=2,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"] * 2,
        use_bidirectional_attention="vision",  # of images alone
    ),
    **{name: _decoder(config, **own) for name, (config, own) in HYBRIDS.items()},
    "falcon": _decoder(
        transformers.FalconConfig, num_kv_heads=2, new_decoder_architecture=True, tie_word_embeddings=False
    ),
    "falcon_multi_query": _decoder(transformers.FalconConfig, multi_query=True, parallel_attn=True, bias=True),
    "gptj": _decoder(transformers.GPTJConfig, num_key_value_heads=4, rotary_dim=8, n_inner=96),
    "codegen": _decoder(transformers.CodeGenConfig, num_key_value_heads=4, rotary_dim=8, n_inner=96),
    "gpt_neo": _decoder(
        transformers.GPTNeoConfig, window_size=24, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]
    ),
    "gpt_neox_japanese": _decoder(transformers.GPTNeoXJapaneseConfig, intermediate_multiple_size=2),
    "bloom": _decoder(transformers.BloomConfig, num_key_value_heads=4, n_layer=2, n_head=4),
    "mpt": _decoder(transformers.MptConfig, d_model=64, n_layers=2, n_heads=4, max_seq_len=256, expansion_ratio=2),
    "xglm": _decoder(transformers.XGLMConfig, d_model=64, ffn_dim=96, num_layers=2, attention_heads=4),
    "openai-gpt": _decoder(transformers.OpenAIGPTConfig, n_positions=256, n_embd=64, n_layer=2, n_head=4),
    "rembert": _decoder(transformers.RemBertConfig, is_decoder=True, input_embedding_size=32, output_embedding_size=32),
    "megatron-bert": _decoder(transformers.MegatronBertConfig, is_decoder=True),
    "diffllama": _decoder(transformers.DiffLlamaConfig, head_dim=16),
    "hrm_text": _decoder(
        transformers.HrmTextConfig, num_layers_per_stack=2, H_cycles=2, L_cycles=1, head_dim=16, num_hidden_layers=8
    ),
    "longcat_flash": _decoder(
        transformers.LongcatFlashConfig,
        num_layers=2,
        ffn_hidden_size=96,
        expert_ffn_hidden_size=48,
        n_routed_experts=4,
        zero_expert_num=2,
        moe_topk=3,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        head_dim=8,
        num_key_value_heads=4,
    ),
    # It has no grouped heads, but keeps the name that it is given, and PEFT reads it.
    "opt": _decoder(transformers.OPTConfig, ffn_dim=96, word_embed_proj_dim=64, num_key_value_heads=4),
}


def tiny_model(architecture: str, seed: int, folder: Path, **overrides: Any) -> Path:
    """Write a random float32 model of `architecture`, a key of ARCHITECTURES, and its tokenizer to `folder`."""
    model = transformers.AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](**overrides))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn(model, name, parameter, generator))
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def read_model(folder: Path) -> Any:
    """Load a checkpoint in float32, by the class that it was saved from, with eager attention.

    In transformers 5.17 the fused one leaves out Gemma 2's soft cap.
    """
    saved = transformers.AutoConfig.from_pretrained(folder).architectures or ["AutoModelForCausalLM"]
    own = getattr(transformers, saved[0])
    return own.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def drawn(model: PreTrainedModel, name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw a parameter of a random model."""
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter is model.get_output_embeddings().weight:
        noise[EOS] *= 1.5  # or too few texts would end by themselves
    kind = model.config.model_type
    if parameter.dim() == 1:
        loud = kind.startswith("gemma") and name.endswith(
            ("model.norm.weight", "language_model.norm.weight")
        )  # makes up for the quiet embedding it meets
        return parameter + 0.2 * noise + (7.0 if loud else 0.0)
    if parameter is model.get_input_embeddings().weight:
        return (0.04 if kind.startswith("gemma") else 0.3) * noise  # Gemma multiplies it by 8
    fan_in = parameter.shape[0] if kind == "gpt2" else parameter.shape[-1]
    return (3.0 if kind in ("gpt2", "opt") else 1.5) * noise / fan_in**0.5


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Build byte-level BPE of exactly VOCAB_SIZE tokens, so that any text is encoded and any token has a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = [*_SPECIAL, *alphabet], []
    for piece in _PIECES.split():
        for merge in ((piece[0], piece[1]), (piece[:2], piece[2])):
            if "".join(merge) not in tokens and len(tokens) < VOCAB_SIZE:
                tokens.append("".join(merge))
                merges.append(merge)
    assert len(tokens) == VOCAB_SIZE
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_SPECIAL[BOS],
        eos_token=_SPECIAL[EOS],
        pad_token=_SPECIAL[PAD],
        chat_template=_CHAT_TEMPLATE,
    )
