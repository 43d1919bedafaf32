"""LLaMA-Adapter (Zhang et al. 2023, arXiv:2303.16199) compiled to a side attention in the last layers.

    y = o_proj(attention) + o_proj(gate · softmax(q K_pᵀ / sqrt(dim)) V_p)

K_p and V_p are k_proj and v_proj of the prompt. q has its positions, K_p has none. o_proj is applied once to the sum
here, and PEFT applies it twice: where it has a bias, the second one is a Bias. PEFT serves GPT-2 too, but adds the
term after the output projection: that is none of the primitives.
"""

from collections.abc import Iterator
from typing import Any

import torch

from ..bypass import Bypass, SideAttention
from ..errors import InvalidAdapter, UnsupportedAdapter
from ..primitives import Bias, Primitive
from .base import Base, NamedTensor
from .config import MethodConfig
from .plain import device_of
from .tensors import Checkpoint

_MODEL_TYPES = ("llama", "mistral")
_ATTENTION = "self_attn"


def compile_adaption_prompt(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile an ADAPTION_PROMPT adapter.

    Reads adaption_prompt: (1, adapter_len, hidden size); adaption_gate: (1,). Raises AdapterError.
    """
    model: Any = base.fresh_model(config.peft_type)
    _check_base(config, model)
    sides: dict[int, SideAttention] = {}
    sites: dict[str, tuple[Primitive, ...]] = {}
    theirs = {own: name for name, own in base.names.items()}
    for name, module in ((theirs.get(own, own), module) for own, module in _attentions(config, model)):
        base.require_own_inputs(f"{name}.o_proj", config.peft_type)  # PEFT has two products there, and we have one
        sides[int(module.layer_idx)] = _side(name, module, config, checkpoint, base)
        if (bias := base.parameter(f"{name}.o_proj", "bias")) is not None:
            sites[f"{name}.o_proj"] = (Bias(bias.to("cpu", base.dtype)),)
    return Bypass(config.peft_type, sites, side_attention=sides, exclusive=("side attention",))


def _check_base(config: MethodConfig, model: Any) -> None:
    kind = str(model.config.model_type)
    if kind not in _MODEL_TYPES:
        raise UnsupportedAdapter(
            f"ADAPTION_PROMPT is not supported on a base of the type {kind}, only on {' and '.join(_MODEL_TYPES)}",
            param="peft_type",
        )
    if (target := config.fields.value("target_modules")) not in (None, _ATTENTION):
        raise InvalidAdapter(f"target_modules must be {_ATTENTION}, not {repr(target)[:80]}", param="target_modules")


def _attentions(config: MethodConfig, model: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over the last `adapter_layers` attention modules, as PEFT counts. Raises InvalidAdapter."""
    found = [(name, module) for name, module in model.named_modules() if name.endswith(f".{_ATTENTION}")]
    count = _required(config, "adapter_layers")
    if count > len(found):
        raise InvalidAdapter(
            f"adapter_layers is {count}, but this base has {len(found)} layers", param="adapter_layers"
        )
    yield from found[-count:]


def _side(name: str, module: Any, config: MethodConfig, checkpoint: Checkpoint, base: Base) -> SideAttention:
    length, width = _required(config, "adapter_len"), base.table.sites[f"{name}.k_proj"].in_features
    prompt = checkpoint.take(f"{name}.adaption_prompt")
    prompt.require_shape((1, length, width), f"an adapter_len of {length} takes on this base")
    gate = checkpoint.take(f"{name}.adaption_gate").require_shape((1,), "a gate has").converted(torch.float32)
    keys, values = (_heads(name, part, module, prompt.converted(base.dtype)[0], base) for part in ("k_proj", "v_proj"))
    gated = NamedTensor(f"{prompt.key}, projected and gated,", values.float() * gate)
    checked = NamedTensor(f"{prompt.key}, projected,", keys)
    return SideAttention(checked.converted(base.dtype), gated.converted(base.dtype), float(module.head_dim) ** -0.5)


def _heads(name: str, projection: str, module: Any, prompt: torch.Tensor, base: Base) -> torch.Tensor:
    """Project a prompt (n, width) by the base's own k_proj or v_proj. Returns (n, kv heads, dim).

    PEFT takes the number of query heads to a kv head from the projection's widths, and serves no other bases.
    """
    site, dim = base.table.sites[f"{name}.{projection}"], int(module.head_dim)
    heads, kv_heads = int(module.config.num_attention_heads), site.out_features // dim
    if site.in_features != heads * dim or heads % kv_heads:
        raise UnsupportedAdapter(
            f"ADAPTION_PROMPT is not supported by PEFT on this base: {site.in_features} features of a token are no "
            f"{heads} heads of {dim}",
            param="peft_type",
        )
    linear = getattr(module, projection)
    with torch.no_grad():
        projected = linear(prompt.to(device_of(linear), base.compute_dtype))
    projected_on_cpu: torch.Tensor = projected.cpu().view(prompt.shape[0], kv_heads, dim)
    return projected_on_cpu


def _required(config: MethodConfig, field: str) -> int:
    if config.fields.value(field) is None:
        raise InvalidAdapter(f"{field} is missing", param=field)
    return config.fields.integer(field, 1, 1)
