"""Where a base is cut: transformers' own plan for its class, read as cuts of its modules.

The plan says which linears are divided by outputs and which by inputs. Heads and packed parts are worked out here. What
the plan has beside that is refused by name: nothing is guessed, and the check at start compares logits.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from peftserve.adapters.peft.listing import listed
from peftserve.kernels.attention.layout import AttentionLayer

from ..model.errors import UnservableModel
from ..model.experts import is_transposed, keeps_experts
from .cuts import Cut, Features, beside, by_heads, even, packed

_COLUMNS = {"colwise", "local_colwise"}
_ROWS = {"rowwise", "local_rowwise", "rowwise_split_input"}
_OF_EXPERTS = {"moe_tp_experts", "gather"}
_WHOLE = {"replicated_with_grad_allreduce", "replicate", "all_reduce", "local_params"}
_HEADS = ("q_proj", "k_proj", "v_proj", "qkv_proj")


@dataclass
class Plan:
    """Where one base is cut.

    cuts: by the name of a module, or of a stacked weight of a module of experts. added: modules whose outputs the ranks
    add up. attention: modules whose heads are divided.
    """

    cuts: dict[str, Cut] = field(default_factory=dict)
    added: set[str] = field(default_factory=set)
    attention: set[str] = field(default_factory=set)


def plan_cuts(model: PreTrainedModel, layers: Mapping[int, AttentionLayer], ranks: int) -> Plan:
    """Return where a base is cut. layers: its attention, by index. Raises UnservableModel with what cannot be cut."""
    _check_attention(layers)
    styles = dict(_styles(model))
    plan = Plan()
    for name, style in styles.items():
        _add(plan, model, name, style, layers, ranks)
    uncut = [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "layer_idx", None), int)
        and any(hasattr(module, projection) for projection in _HEADS)
        and name not in plan.attention
    ]
    if uncut:
        raise UnservableModel(f"transformers' plan of tensor parallel leaves the attention of {listed(uncut)} whole")
    return plan


def _check_attention(layers: Mapping[int, AttentionLayer]) -> None:
    if any(layer.sinks or layer.biased for layer in layers.values()):
        raise UnservableModel("its attention has sinks or biases of heads, which tensor parallel does not divide yet")


def _styles(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Yield the modules and stacked weights that transformers' plan names, each with the style."""
    known = dict(getattr(model.config.get_text_config(), "base_model_tp_plan", None) or {})
    if not known:
        raise UnservableModel(
            f"transformers has no plan of tensor parallel for {type(model).__name__}; serve it with "
            "--tensor-parallel-size 1"
        )
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
    for name in names:
        wild = re.sub(r"\b\d+\b", "*", name)
        style = next((s for pattern, s in known.items() if wild == pattern or wild.endswith(f".{pattern}")), None)
        if style is not None and style not in _WHOLE:
            yield name, style


def _add(
    plan: Plan, model: PreTrainedModel, name: str, style: str, layers: Mapping[int, AttentionLayer], ranks: int
) -> None:
    parent_name, _, last = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    if keeps_experts(parent):
        plan.cuts[name] = _of_expert_weight(parent, name, last, style, ranks)
    elif style in _OF_EXPERTS:
        plan.added.add(name)
    elif style in _COLUMNS or (style.startswith("colwise") and last in ("qkv_proj", "gate_up_proj")):
        plan.cuts[name] = Cut(outputs=_outputs(parent, name, last, layers, ranks))
        if last in _HEADS:
            plan.attention.add(parent_name)
    elif style in _ROWS:
        linear = getattr(parent, last)
        plan.cuts[name] = Cut(inputs=even(linear.in_features, ranks, f"the input of {name}"))
        plan.added.add(name)
    else:
        raise UnservableModel(
            f"transformers' plan of tensor parallel divides {name} as {style}, which is not supported"
        )


def _outputs(parent: nn.Module, name: str, last: str, layers: Mapping[int, AttentionLayer], ranks: int) -> Features:
    """Divide the outputs of a linear: by heads in attention, in equal runs elsewhere."""
    width = int(getattr(parent, last).out_features)
    if last not in _HEADS:
        return packed([width // 2] * 2, ranks, name) if last == "gate_up_proj" else even(width, ranks, name)
    layer = layers[int(parent.layer_idx)]  # type: ignore[arg-type]
    even(layer.heads, ranks, f"{layer.heads} attention heads, those of {name}")
    if last == "q_proj":
        return even(width, ranks, name)
    if last == "qkv_proj":
        widths = [layer.heads * layer.key_dim, layer.kv_heads * layer.key_dim, layer.kv_heads * layer.value_dim]
        own = [even(widths[0], ranks, name)]
        own += [by_heads(layer.kv_heads, dim, ranks, name) for dim in (layer.key_dim, layer.value_dim)]
        return beside(own, widths)
    return by_heads(layer.kv_heads, width // layer.kv_heads, ranks, name)


def _of_expert_weight(module: nn.Module, name: str, last: str, style: str, ranks: int) -> Cut:
    """Divide a stacked weight of experts, (experts, out, in), inside each expert."""
    if is_transposed(module) or getattr(module, "has_bias", False):
        raise UnservableModel(
            f"the experts of {name} have biases, or weights stored as (experts, in, out), which tensor parallel does "
            "not divide yet"
        )
    weight = module.get_parameter(last)
    if last == "down_proj" and style in ("rowwise", "local_rowwise"):
        return Cut(inputs=even(weight.shape[2], ranks, f"the input of {name}"))
    if last in ("gate_up_proj", "up_proj") and style in ("packed_colwise", "local_packed_colwise", "colwise"):
        parts = 2 if last == "gate_up_proj" else 1
        return Cut(outputs=packed([weight.shape[1] // parts] * parts, ranks, name))
    raise UnservableModel(f"transformers' plan of tensor parallel divides {name} as {style}, which is not supported")
