"""Virtual tokens, compiled to the keys and values that they leave in the cache; the first real token is at position n.

PROMPT_TUNING (Lester et al. 2021, arXiv:2104.08691), P_TUNING (Liu et al. 2021, arXiv:2103.10385), CPT (Tsachor et
al. 2024, arXiv:2410.17222): n embeddings, over which the base itself runs once at load. MULTITASK_PROMPT_TUNING (Wang
et al. 2023, arXiv:2303.02861): the same of `prompt ⊙ (cols[task] @ rows[task])`. PREFIX_TUNING (Li and Liang 2021,
arXiv:2101.00190) and CARTRIDGE (Eyuboglu et al. 2025, arXiv:2506.06266): the keys and values themselves, positions
applied. Encoders and projections are folded in by PEFT when it saves.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from ..bypass import Bypass, KVPrefix
from ..errors import AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from .base import Base, NamedTensor
from .config import MethodConfig
from .plain import compute_dtype
from .prefill import Cached, counts_otherwise, needs_token_ids, of_tokens, prefill
from .tensors import Checkpoint

_EXCLUSIVE = ("KV prefix",)


def compile_soft_prompt(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a PROMPT_TUNING or P_TUNING adapter.

    Reads prompt_embeddings: (n, width of the base's embeddings). Raises AdapterError.
    """
    model = _fresh_model(config, base)
    prompt = _prompt(config, checkpoint, model)
    return _bypass(config, len(prompt.tensor), _read_by_base(model, prompt, config), base)


def compile_cpt(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a CPT adapter: one embedding for each of `cpt_token_ids`. Raises AdapterError."""
    ids, length = config.fields.integers("cpt_token_ids") or (0,), _length(config)
    if len(ids) != length:
        raise InvalidAdapter(
            f"cpt_token_ids has {len(ids)} ids, but num_virtual_tokens is {length}", param="cpt_token_ids"
        )
    return compile_soft_prompt(config, checkpoint, base)


def compile_multitask_prompt(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a MULTITASK_PROMPT_TUNING adapter for `base.task`.

    Reads prompt_embeddings: (n, width); prefix_task_cols: (tasks, n, ranks); prefix_task_rows: (tasks, ranks, width).
    Raises AdapterError.
    """
    tasks, ranks = config.fields.integer("num_tasks", 1, 1), config.fields.integer("num_ranks", 1, 1)
    if not 0 <= base.task < tasks:
        raise InvalidAdapter(
            f"task_id {base.task} is not among this adapter's {tasks} tasks, 0 to {tasks - 1}", param="task_id"
        )
    model = _fresh_model(config, base)
    prompt = _prompt(config, checkpoint, model)
    length, width = prompt.tensor.shape
    why = f"{tasks} tasks of rank {ranks} and {length} virtual tokens take"
    cols = checkpoint.take("prefix_task_cols").require_shape((tasks, length, ranks), why).converted(torch.float32)
    rows = checkpoint.take("prefix_task_rows").require_shape((tasks, ranks, width), why).converted(torch.float32)
    scaled = prompt.converted(torch.float32) * (cols[base.task] @ rows[base.task])
    cached = _read_by_base(model, NamedTensor(prompt.key, scaled), config)
    return _bypass(config, length, cached, base, num_tasks=tasks)


def compile_kv_prefix(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a PREFIX_TUNING or CARTRIDGE adapter.

    Reads prompt_embeddings: (n, layers · 2 · kv heads · dim), of each token layer 0's key, its value, then layer 1's.
    Raises AdapterError.
    """
    model = _fresh_model(config, base)
    length = _checked_length(config, model)
    cached = _cache_shapes(config, model)
    heads, dim = (max(sizes) for sizes in zip(*cached.values(), strict=True))
    layers = _num_layers(config, model, cached)
    _require(config, "num_attention_heads", heads, "kv heads")
    _require(config, "token_dim", heads * dim, f"features of {heads} kv heads of {dim}")
    wanted = (length, layers * 2 * heads * dim)
    why = f"{length} virtual tokens take, in {layers} layers of {heads} kv heads of {dim},"
    stored = checkpoint.take("prompt_embeddings").require_shape(wanted, why).converted(base.dtype)
    pairs = stored.view(length, layers, 2, heads, dim)
    own = {i: pairs[:, i, :, :own_heads, :own_dim] for i, (own_heads, own_dim) in cached.items()}
    return _bypass(config, length, Cached({i: (pair[:, 0], pair[:, 1]) for i, pair in own.items()}, {}), base)


def _fresh_model(config: MethodConfig, base: Base) -> Any:
    """Return a copy of the base to run. Raises UnsupportedAdapter where PEFT does not carry virtual tokens along."""
    model = base.fresh_model(config.peft_type)
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise UnsupportedAdapter(
            f"{config.peft_type} is not supported on this base: it does not take its cache as past_key_values, the one "
            "name that PEFT knows, so that PEFT's generation puts the virtual tokens before every single token",
            param="peft_type",
        )
    return model


def _cache_shapes(config: MethodConfig, model: Any) -> dict[int, tuple[int, int]]:
    """Return kv heads and the size of each, of every layer that has keys and values of its own.

    PEFT makes the prefix as wide as the widest layer reads it; others read its first heads, and their first numbers.
    Raises UnsupportedAdapter.
    """
    cache, states = of_tokens(model, [0])
    if states:
        raise UnsupportedAdapter(
            f"{config.peft_type} is not supported on this base: keys and values do not say what its recurrent layers "
            "keep of the virtual tokens, and PEFT does not run such an adapter either",
            param="peft_type",
        )
    if any(keys.shape != values.shape for keys, values in cache.values()):
        raise UnsupportedAdapter(
            f"{config.peft_type} is not supported on this base: its keys and values have several shapes",
            param="peft_type",
        )
    return {i: (keys.shape[1], keys.shape[2]) for i, (keys, _) in cache.items()}


def _num_layers(config: MethodConfig, model: Any, cached: Mapping[int, tuple[int, int]]) -> int:
    """Return the layers that the prefix is of: all, or those with a cache, where others read another layer's.

    Raises InvalidAdapter.
    """
    last = 1 + max(cached)
    everything = int(getattr(model.config.get_text_config(), "num_hidden_layers", last))
    if last < everything == config.fields.integer("num_layers", last, 1):
        return everything
    _require(config, "num_layers", last, "layers with a cache")
    return last


def _prompt(config: MethodConfig, checkpoint: Checkpoint, model: Any) -> NamedTensor:
    length, width = _checked_length(config, model), _width(model)
    _require(config, "token_dim", width, "features of an embedding")
    return checkpoint.take("prompt_embeddings").require_shape(
        (length, width), f"{length} virtual tokens of this base take"
    )


def _read_by_base(model: Any, prompt: NamedTensor, config: MethodConfig) -> Cached:
    _require(config, "num_layers", int(model.config.get_text_config().num_hidden_layers), "layers")
    if needs_token_ids(model):
        raise UnsupportedAdapter(
            f"{config.peft_type} is not supported on this base: it reads token ids beside their embeddings, which "
            "virtual tokens do not have, and PEFT's generation does not give it those of the prompt either",
            param="peft_type",
        )
    if counts_otherwise(model):
        raise UnsupportedAdapter(
            f"{config.peft_type} is not supported on this base: PEFT's generation gives no positions beside virtual "
            "tokens, and without them the base counts others than it is served with, from 0 on",
            param="peft_type",
        )
    return prefill(model, prompt.converted(compute_dtype(model)))


def _bypass(config: MethodConfig, length: int, cached: Cached, base: Base, num_tasks: int = 0) -> Bypass:
    layers = {
        i: (
            NamedTensor(f"the keys of layer {i}", keys).converted(base.dtype),
            NamedTensor(f"the values of layer {i}", values).converted(base.dtype),
        )
        for i, (keys, values) in cached.layers.items()
    }
    prefix = KVPrefix(length, layers, cached.states)
    return Bypass(config.peft_type, {}, prefix=prefix, exclusive=_EXCLUSIVE, num_tasks=num_tasks)


def _checked_length(config: MethodConfig, model: Any) -> int:
    """Return the number of virtual tokens, which must leave a position for a token. Raises AdapterError."""
    length, positions = _length(config), getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length >= positions:
        raise AdapterTooLarge(
            f"num_virtual_tokens is {length}, and this base has {positions} positions for them and the prompt",
            param="num_virtual_tokens",
        )
    return length


def _length(config: MethodConfig) -> int:
    submodules = config.fields.integer("num_transformer_submodules", 1, 1)
    if submodules != 1:
        raise InvalidAdapter(
            f"num_transformer_submodules is {submodules}: an adapter of an encoder-decoder, which this base is not",
            param="num_transformer_submodules",
        )
    if config.fields.value("num_virtual_tokens") is None:
        raise InvalidAdapter("num_virtual_tokens is missing", param="num_virtual_tokens")
    return config.fields.integer("num_virtual_tokens", 1, 1)


def _width(model: Any) -> int:
    return int(model.get_input_embeddings().embedding_dim)


def _require(config: MethodConfig, field: str, own: int, what: str) -> None:
    """Check a field that PEFT fills in from the base against this base. Raises InvalidAdapter."""
    value = config.fields.integer(field, own, 1)
    if value != own:
        raise InvalidAdapter(f"{field} is {value}, but this base has {own} {what}", param=field)
