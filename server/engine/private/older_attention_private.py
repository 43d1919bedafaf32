"""The attention of transformers' older classes, which compute it themselves and do not call its attention interface.

A row of OLDER says, by the full name of a class, which method is replaced, and by what: the class's own parts around a
call of `attend`, which is given the queries, keys and values of a step's rows and needs no mask.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

__all__ = ["OLDER", "Attend", "Older", "calls_the_interface", "set_attention_implementation"]

_MODELS = "transformers.models"
_GPTJ = _MODELS + ".gptj.modeling_gptj"
_CODEGEN = _MODELS + ".codegen.modeling_codegen"
_WHOLE = "Its parts are called around our attention. Without them the class is refused. Instead: none but model code."
_METHOD = (
    "Takes the attention of this class, which has no interface for it. Without it the class is refused. Instead: a "
    "forward pass of the whole module, of our own."
)

NAMES: Mapping[str, str] = {
    "hasattr(transformers.PreTrainedConfig(), '_attn_implementation')": (
        "The configured name, by which these models make their masks: `set_attn_implementation` leaves it as it is for "
        "classes without the interface. Instead: masks of all rows by all rows in each step, which nobody reads."
    ),
    "hasattr(transformers.PreTrainedModel, '_supports_attention_backend')": (
        "Whether a class calls the interface: some of these do from a later transformers on, as GPT-J and CodeGen from "
        "5.24. Instead: a look for the method that is replaced, where it is not `forward`."
    ),
    f"hasattr({_GPTJ}.GPTJAttention, '_attn') or {_GPTJ}.GPTJPreTrainedModel._supports_attention_backend": _METHOD,
    (
        f"hasattr({_CODEGEN}.CodeGenAttention, '_attn') or "
        f"{_CODEGEN}.CodeGenPreTrainedModel._supports_attention_backend"
    ): _METHOD,
    f"{_MODELS}.gpt_neo.modeling_gpt_neo.GPTNeoSelfAttention._attn": _METHOD,
    f"{_MODELS}.gpt_neox_japanese.modeling_gpt_neox_japanese.GPTNeoXJapaneseAttention._attn": _METHOD,
    f"{_MODELS}.openai.modeling_openai.Attention._attn": _METHOD,
    f"{_MODELS}.bloom.modeling_bloom.BloomAttention._reshape": _WHOLE,
    f"{_MODELS}.bloom.modeling_bloom.BloomModel.build_alibi_tensor": _WHOLE,
    f"{_MODELS}.mpt.modeling_mpt.MptModel.build_mpt_alibi_tensor": _WHOLE,
    f"{_MODELS}.falcon.modeling_falcon.FalconAttention._split_heads": _WHOLE,
    f"{_MODELS}.falcon.modeling_falcon.apply_rotary_pos_emb": _WHOLE,
    f"{_MODELS}.xglm.modeling_xglm.XGLMAttention": _WHOLE,
    f"{_MODELS}.rembert.modeling_rembert.RemBertSelfAttention": _WHOLE,
    f"{_MODELS}.megatron_bert.modeling_megatron_bert.MegatronBertSelfAttention": _WHOLE,
}


class Attend(Protocol):
    """Paged attention for one module."""

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, window: int | None = None
    ) -> torch.Tensor:
        """Attend causally. query, key, value: (1, heads, tokens, dim). Returns (1, tokens, heads, dim)."""


@dataclass(frozen=True)
class Older:
    """How a class's attention is replaced.

    method: that is. run: in its place, called with the module, `attend`, and what the method is called with.
    bias: what is added to scores, (heads, positions), for a model and so many positions. refusal: why one cannot be
    served; None where it can be.
    """

    method: str
    run: Callable[..., Any]
    bias: Callable[[Any, int], torch.Tensor] | None = None
    refusal: Callable[[Any], str | None] = lambda module: None


def calls_the_interface(model: nn.Module) -> bool:
    """Whether a model's class, in the installed transformers, calls the attention interface."""
    supports: bool = model._supports_attention_backend  # type: ignore[assignment]
    return supports


def set_attention_implementation(model: nn.Module, name: str) -> None:
    """Let a model whose class calls no interface make its masks as for this name."""
    model.config._attn_implementation = name  # type: ignore[union-attr]


def _gptj(module: Any, attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> Any:
    return attend(query, key, value, 1 / module.scale_attn).transpose(1, 2), None


def _neo(module: Any, attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> Any:
    window = module.config.window_size if module.attention_type == "local" else None
    return attend(query, key, value, 1.0, window).transpose(1, 2), None


def _japanese(module: Any, attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> Any:
    return attend(query, key, value, 1 / module.norm_factor).transpose(1, 2), None


def _openai(module: Any, attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> Any:
    scale = value.shape[-1] ** -0.5 if module.scale else 1.0
    return [attend(query, key.transpose(2, 3), value, scale).transpose(1, 2)]


def _bloom(module: Any, attend: Attend, hidden_states: torch.Tensor, residual: torch.Tensor, **_: Any) -> Any:
    query, key, value = module._reshape(module.query_key_value(hidden_states))
    return residual + module.dense(attend(query, key, value, module.inv_norm_factor).flatten(2)), None


def _bloom_bias(model: Any, positions: int) -> torch.Tensor:
    """Return the biases in the model's type, to which transformers rounds them."""
    ones = torch.ones(1, positions, device=model.device)
    biases: torch.Tensor = model.base_model.build_alibi_tensor(ones, model.config.n_head, model.dtype)
    return biases[:, 0]


def _bloom_refusal(module: Any) -> str | None:
    if module.pretraining_tp > 1 and module.slow_but_exact:
        return "`slow_but_exact` multiplies parts of a weight by themselves, beside any adapter; set it to false"
    return None


def _mpt(module: Any, attend: Attend, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
    mixed = module.Wqkv(hidden_states)
    if module.clip_qkv:
        mixed = mixed.clamp(-module.clip_qkv, module.clip_qkv)
    query, key, value = (part.unflatten(2, (module.n_heads, -1)).transpose(1, 2) for part in mixed.chunk(3, 2))
    return module.out_proj(attend(query, key, value, module.softmax_scale).flatten(2)), None


def _mpt_bias(model: Any, positions: int) -> torch.Tensor:
    """Return the biases counted from the first key on, not back from the last: the same but for a constant."""
    biases: torch.Tensor = model.base_model.build_mpt_alibi_tensor(model.config.n_heads, positions, device=model.device)
    return -biases[:, 0].flip(1)


def _xglm(module: Any, attend: Attend, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
    scaled = module.q_proj(hidden_states) * module.scaling
    parts = (scaled, module.k_proj(hidden_states), module.v_proj(hidden_states))
    query, key, value = (part.unflatten(2, (module.num_heads, -1)).transpose(1, 2) for part in parts)
    return module.out_proj(attend(query, key, value, 1.0).flatten(2)), None


def _bert(module: Any, attend: Attend, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
    parts = (linear(hidden_states) for linear in (module.query, module.key, module.value))
    query, key, value = (part.unflatten(2, (module.num_attention_heads, -1)).transpose(1, 2) for part in parts)
    return attend(query, key, value, module.attention_head_size**-0.5).flatten(2), None


def _falcon(
    module: Any,
    attend: Attend,
    hidden_states: torch.Tensor,
    *_: Any,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **__: Any,
) -> Any:
    query, key, value = (p.transpose(1, 2) for p in module._split_heads(module.query_key_value(hidden_states)))
    repeats = key.shape[1] // module.num_kv_heads  # of each, by the newer architecture
    query, key = apply_rotary_pos_emb(query, key[:, ::repeats], *position_embeddings)
    out = attend(query, key, value[:, ::repeats], module.head_dim**-0.5)
    return module.dense(out.flatten(2)), None


def _falcon_refusal(module: Any) -> str | None:
    if module.config.alibi:
        return "transformers' own two ways to compute Falcon's ALiBi differ: one adds it twice"
    return None


OLDER: Mapping[str, Older] = {
    f"{_MODELS}.gptj.modeling_gptj.GPTJAttention": Older("_attn", _gptj),
    f"{_MODELS}.codegen.modeling_codegen.CodeGenAttention": Older("_attn", _gptj),
    f"{_MODELS}.gpt_neo.modeling_gpt_neo.GPTNeoSelfAttention": Older("_attn", _neo),
    f"{_MODELS}.gpt_neox_japanese.modeling_gpt_neox_japanese.GPTNeoXJapaneseAttention": Older("_attn", _japanese),
    f"{_MODELS}.openai.modeling_openai.Attention": Older("_attn", _openai),
    f"{_MODELS}.bloom.modeling_bloom.BloomAttention": Older("forward", _bloom, _bloom_bias, _bloom_refusal),
    f"{_MODELS}.mpt.modeling_mpt.MptAttention": Older("forward", _mpt, _mpt_bias),
    f"{_MODELS}.xglm.modeling_xglm.XGLMAttention": Older("forward", _xglm),
    f"{_MODELS}.rembert.modeling_rembert.RemBertSelfAttention": Older("forward", _bert),
    f"{_MODELS}.megatron_bert.modeling_megatron_bert.MegatronBertSelfAttention": Older("forward", _bert),
    f"{_MODELS}.falcon.modeling_falcon.FalconAttention": Older("forward", _falcon, refusal=_falcon_refusal),
}
