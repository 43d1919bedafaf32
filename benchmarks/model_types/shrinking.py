"""Small configurations of any type of model: each field by what its name means, whatever the architecture.

Fields that no rule knows keep their defaults. Lists with an entry for each layer keep one entry of every kind.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from .exceptions import EXCEPTIONS

_SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_OPTIONAL: Mapping[str, Callable[["Shape"], int]] = {  # that some types do not work out by themselves
    "head_dim": lambda shape: shape.head_dim,
    "num_key_value_heads": lambda shape: shape.kv_heads,
}
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks")


@dataclass(frozen=True)
class Shape:
    """The sizes of a small model.

    window: keys that a query of a sliding layer sees. tied: whether head and embedding are one, None as types are.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    layers: int
    experts: int
    vocabulary: int
    positions: int
    window: int
    tied: bool | None = None

    @classmethod
    def drawn(
        cls,
        seed: int,
        hidden: int | None = None,
        layers: int | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        tied: int | None = None,
    ) -> "Shape":
        """Draw the sizes that are not given. hidden: a multiple of 32.

        Raises ValueError if heads do not fit together: heads of an even size, in as many groups as there are KV heads.
        """
        random = Random(seed)
        width = hidden or random.choice((64, 96, 128))
        count, groups = heads or width // 16, kv_heads or 2
        if width % (2 * count) or count % groups:
            raise ValueError(f"{count} heads of {groups} KV heads do not fit a hidden size of {width}")
        return cls(
            hidden=width,
            heads=count,
            kv_heads=groups,
            head_dim=width // count,
            ffn=random.choice((48, 80, 96)),
            layers=layers or random.choice((2, 3)),
            experts=4,
            vocabulary=random.choice((160, 200)),
            positions=128,
            window=random.choice((8, 12, 16)),
            tied=None if tied is None else bool(tied),
        )


_Rule = Callable[[Shape, Any], Any]


def _at_most(size: Callable[[Shape], int]) -> _Rule:
    return lambda shape, value: min(int(value), size(shape))


# By the names that fields have: the first rule whose expression matches a whole name.
_RULES: Mapping[str, _Rule] = {
    r"hidden_size_per_layer_input|pronunciation_embed_dim|shape_embed_dim": lambda s, _: 16,
    r"(\w+_)?hidden_size|hidden_size_global|d_model|n_embd|dim|emb(edding)?_dim|(\w+_)?embedding_size"
    r"|word_embed_proj_dim|lru_width|(vision|projector)_(in|out)put_dim": lambda s, _: s.hidden,
    r"(\w+_)?intermediate_size(_mlp)?|(\w+_)?ffn_dim|(\w+_)?ffn_hidden_size|n_inner|dff|dim_ff|d_ff|d_inner"
    r"|feed_forward_size|mlp_dim": lambda s, _: s.ffn,
    r"num_hidden_layers|n_layers?|num_(encoder_|decoder_)?layers|(en|de)coder_layers|num_blocks|depth": lambda s, _: (
        s.layers
    ),
    r"(swa_)?num_attention_heads|num_(en|de)coder_attention_heads|n_heads?|num_heads|linear_num_heads"
    r"|((en|de)coder_)?attention_heads": lambda s, _: s.heads,
    r"(\w+_)?num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups": lambda s, _: s.kv_heads,
    r"qk_rope_head_dim|rotary_dim": lambda s, _: s.head_dim // 2,
    r"(v|qk_nope|global|swa|linear|linear_key|linear_value|index|attention)_head_dim|head_dim|kv_channels|dim_head"
    r"|d_head|d_kv|attention_head_size|mamba_d_head|mamba_head_dim|mamba_headdim": lambda s, _: s.head_dim,
    r"mamba_n_heads|mamba_num_heads": lambda s, _: 2 * s.hidden // s.head_dim,
    r"(q|kv|o)_lora_rank": lambda s, _: s.head_dim,
    r"num_(local_)?experts|n_routed_experts|moe_num_experts": lambda s, value: min(int(value), s.experts),
    r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|n_group|num_expert_group|zero_expert_num": _at_most(
        lambda s: 2
    ),
    r"topk_group|first_k_dense_replace|num_dense_layers": _at_most(lambda s: 1),
    r"max_position_embeddings|original_max_position_embeddings|n_positions|max_seq_len|n_ctx|context_length"
    r"|max_(target|source)_positions|model_max_length": lambda s, _: s.positions,
    r"(\w+_)?vocab_size(_per_layer_input)?": lambda s, _: s.vocabulary,
    r"(attention_)?sliding_window(_size)?|attention_window_size|window_size|local_attention|attention_chunk_size"
    r"|keep_window_size": lambda s, value: s.window if value else value,
    r"state_size|mamba_d_state|ssm_state_size|mamba_dt_rank|time_step_rank|laurel_rank|adapter_rank|index_topk": (
        lambda s, _: 8
    ),
    r"n_groups|mamba_n_?groups|linear_num_key_heads|index_n_heads": _at_most(lambda s: 2),
    r"linear_num_value_heads": _at_most(lambda s: 4),
    r"chunk_size|mamba_chunk_size|block_size": lambda s, value: s.window if value > 0 else value,
}


def small_config(model_type: str, shape: Shape) -> PreTrainedConfig:
    """Return a small configuration of a type. Raises whatever transformers says of sizes that do not fit together."""
    kind = CONFIG_MAPPING[model_type]
    own = EXCEPTIONS.get(model_type, lambda _: {})(shape)
    try:
        default = kind()
    except Exception:
        default = kind(**own)
    return kind(**_merged(shrunk(default, shape), own))


def shrunk(config: PreTrainedConfig, shape: Shape) -> dict[str, Any]:
    """Return the fields of a configuration that change, with their small values; configurations inside as well."""
    kept = _kept_layers(config, shape.layers)
    if vars(config).get("kv_lora_rank"):  # keys and values of all heads come of one small vector
        shape = replace(shape, kv_heads=shape.heads)
    small = {name: new for name, old in vars(config).items() if (new := _small(name, old, shape, kept)) is not old}
    if _rotates_a_part(config):
        small["head_dim"] = small["qk_rope_head_dim"]
    return _with_layers(small, len(kept)) if kept else small


def _rotates_a_part(config: PreTrainedConfig) -> bool:
    """Tell whether `head_dim` is the width of the rotated part of a head, which rope reads there."""
    width = vars(config).get("head_dim")
    return width is not None and vars(config).get("qk_rope_head_dim") == width


def _merged(fields: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    both = {name for name in own if isinstance(own[name], dict) and isinstance(fields.get(name), dict)}
    return {**fields, **own, **{name: _merged(fields[name], own[name]) for name in both}}


def _small(name: str, old: Any, shape: Shape, kept: Sequence[int]) -> Any:
    """Return a field's small value, or the old one itself."""
    if isinstance(old, PreTrainedConfig):
        return shrunk(old, shape)
    if name == "is_decoder":
        return True  # of what may be an encoder or a decoder; transformers sets it for the decoder of a pair by itself
    if name == "tie_word_embeddings" and shape.tied is not None:
        return shape.tied
    if old is None and name in _OPTIONAL:
        return _OPTIONAL[name](shape)
    if old is None or isinstance(old, bool) or name.startswith("_"):
        return old
    if name in _SPECIAL:
        return _SPECIAL[name]
    if _is_of_layers(old, kept):
        return [old[i] for i in kept]
    if name == "rope_parameters":
        return _rope(old, shape)
    if re.fullmatch(r"\w+_token_(id|index)", name) and isinstance(old, int) and old >= shape.vocabulary:
        return shape.vocabulary - 1 - old % 16
    if isinstance(old, int):
        rule = next((rule for names, rule in _RULES.items() if re.fullmatch(names, name)), None)
        return old if rule is None else rule(shape, old)
    return old


def _kept_layers(config: PreTrainedConfig, layers: int) -> list[int]:
    """Return the layers that stay: of every kind that a list with an entry for each layer tells one, `layers` at least.

    Empty where there are no such lists.
    """
    count = next((getattr(config, name) for name in _LAYERS if isinstance(getattr(config, name, None), int)), 0)
    lists = [value for value in vars(config).values() if _is_list_of(value, count)]
    if not lists:
        return []
    seen, kept = set[tuple[int, str]](), list[int]()
    for layer in range(count):
        kinds = {(i, str(value[layer])) for i, value in enumerate(lists)}
        if kinds - seen:
            kept.append(layer)
            seen |= kinds
    others = [layer for layer in range(count) if layer not in kept]
    return sorted([*kept, *others[: max(0, layers - len(kept))]])


def _is_list_of(value: Any, count: int) -> bool:
    """Tell whether a field has an entry for each layer. A list of growing numbers rather names some of the layers."""
    if not isinstance(value, list | tuple) or len(value) != count or count < 2:
        return False
    return not (all(type(entry) is int for entry in value) and list(value) == sorted(set(value)))


def _is_of_layers(value: Any, kept: Sequence[int]) -> bool:
    return (
        bool(kept)
        and _is_list_of(value, len(value) if isinstance(value, list | tuple) else 0)
        and len(value) > max(kept)
    )


def _with_layers(small: dict[str, Any], layers: int) -> dict[str, Any]:
    return {name: layers if name in _LAYERS else value for name, value in small.items()}


def _rope(old: Any, shape: Shape) -> Any:
    """Return rope's parameters with sections of positions that fit the head's size."""
    if not isinstance(old, dict) or "mrope_section" not in old:
        return old
    half = int(shape.head_dim * old.get("partial_rotary_factor", 1.0)) // 2
    first = max(half // 3, 1)
    return {**old, "mrope_section": [half - 2 * first if half > 2 else half - first, first, first if half > 2 else 0]}
