"""Virtual tokens, compiled to the keys and values that they leave in the cache; the first real token is at position n.

PROMPT_TUNING (Lester et al. 2021, arXiv:2104.08691), P_TUNING (Liu et al. 2021, arXiv:2103.10385), CPT (Tsachor et
al. 2024, arXiv:2410.17222): n embeddings, over which the base itself runs once at load. MULTITASK_PROMPT_TUNING (Wang
et al. 2023, arXiv:2303.02861): the same of `prompt ⊙ (cols[task] @ rows[task])`. PREFIX_TUNING (Li and Liang 2021,
arXiv:2101.00190) and CARTRIDGE (Eyuboglu et al. 2025, arXiv:2506.06266): the keys and values themselves, positions
applied. Encoders and projections are folded in by PEFT when it saves.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..bypass import Bypass, KVPrefix
from ..errors import AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from .base import Base, NamedTensor
from .config import MethodConfig
from .plain import compute_dtype
from .prefill import Layer, prefill
from .tensors import Checkpoint

_EXCLUSIVE = ("KV prefix",)


def compile_soft_prompt(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a PROMPT_TUNING or P_TUNING adapter.

    Reads prompt_embeddings: (n, width of the base's embeddings). Raises AdapterError.
    """
    model: Any = base.fresh_model(config.peft_type)
    prompt = _prompt(config, checkpoint, model)
    return _bypass(config, _read_by_base(model, prompt, config), base)


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
    model: Any = base.fresh_model(config.peft_type)
    prompt = _prompt(config, checkpoint, model)
    length, width = prompt.tensor.shape
    why = f"{tasks} tasks of rank {ranks} and {length} virtual tokens take"
    cols = checkpoint.take("prefix_task_cols").require_shape((tasks, length, ranks), why).converted(torch.float32)
    rows = checkpoint.take("prefix_task_rows").require_shape((tasks, ranks, width), why).converted(torch.float32)
    scaled = prompt.converted(torch.float32) * (cols[base.task] @ rows[base.task])
    layers = _read_by_base(model, NamedTensor(prompt.key, scaled), config)
    return _bypass(config, layers, base, num_tasks=tasks)


def compile_kv_prefix(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a PREFIX_TUNING or CARTRIDGE adapter.

    Reads prompt_embeddings: (n, layers · 2 · kv heads · dim), of each token layer 0's key, its value, then layer 1's.
    Raises AdapterError.
    """
    model: Any = base.fresh_model(config.peft_type)
    length = _checked_length(config, model)
    heads, dim, layers = _cache_shape(config, model)
    wanted = (length, layers * 2 * heads * dim)
    why = f"{length} virtual tokens take, in {layers} layers of {heads} kv heads of {dim},"
    stored = checkpoint.take("prompt_embeddings").require_shape(wanted, why).converted(base.dtype)
    pairs = stored.view(length, layers, 2, heads, dim)
    return _bypass(config, {i: (pairs[:, i, 0], pairs[:, i, 1]) for i in range(layers)}, base)


def _cache_shape(config: MethodConfig, model: Any) -> tuple[int, int, int]:
    """Return kv heads, dim of each, and layers of the base's cache, with which the configuration must agree.

    Raises InvalidAdapter, UnsupportedAdapter.
    """
    one = torch.zeros(1, _width(model), dtype=compute_dtype(model))
    cache = prefill(model, one)
    shapes = {(keys.shape[1:], values.shape[1:]) for keys, values in cache.values()}
    keys, values = next(iter(shapes))
    if len(shapes) > 1 or keys != values:
        raise UnsupportedAdapter(
            f"{config.peft_type} is not supported on this base: its layers have keys and values of several shapes",
            param="peft_type",
        )
    heads, dim = keys
    _require(config, "num_layers", len(cache), "layers with a cache")
    _require(config, "num_attention_heads", heads, "kv heads")
    _require(config, "token_dim", heads * dim, f"features of {heads} kv heads of {dim}")
    return heads, dim, len(cache)


def _prompt(config: MethodConfig, checkpoint: Checkpoint, model: Any) -> NamedTensor:
    length, width = _checked_length(config, model), _width(model)
    _require(config, "token_dim", width, "features of an embedding")
    return checkpoint.take("prompt_embeddings").require_shape(
        (length, width), f"{length} virtual tokens of this base take"
    )


def _read_by_base(model: Any, prompt: NamedTensor, config: MethodConfig) -> dict[int, Layer]:
    _require(config, "num_layers", int(model.config.get_text_config().num_hidden_layers), "layers")
    return prefill(model, prompt.converted(compute_dtype(model)))


def _bypass(config: MethodConfig, layers: Mapping[int, Layer], base: Base, num_tasks: int = 0) -> Bypass:
    cached = {
        i: (
            NamedTensor(f"the keys of layer {i}", keys).converted(base.dtype),
            NamedTensor(f"the values of layer {i}", values).converted(base.dtype),
        )
        for i, (keys, values) in layers.items()
    }
    return Bypass(config.peft_type, {}, prefix=KVPrefix(cached), exclusive=_EXCLUSIVE, num_tasks=num_tasks)


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
