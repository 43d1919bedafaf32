"""Adapters inside mixtures of experts, behind transformers' interface for experts.

A step without such an adapter at a module runs what transformers would run there. Otherwise each expert computes

    out = W_down act(W_up x + Δ_up x) + Δ_down (...)

with the deltas of each token's own adapters. Expert parallelism is not served.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from peftserve.adapters.peft.plain import is_plain
from peftserve.adapters.sites import ExpertParameter
from peftserve.kernels.ops.experts import add_expert_low_rank_
from peftserve.kernels.ops.site_plan import Part

from .callouts import Call, call_out

_names = itertools.count()
_FACTS = ("has_gate", "has_bias", "is_transposed", "num_experts")


class ExpertsBypass:
    """The experts' function of one model. parts: module to the step's work there; set and cleared by the hooks."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.name = f"peftserve_experts_{next(_names)}"
        self.parts: Mapping[nn.Module, Sequence[Part]] = {}
        self.called: set[nn.Module] = set()  # modules that really come here
        self._default: str | None = None
        if any(is_experts(module) for module in model.modules()):
            self._default = model.config._experts_implementation
            ALL_EXPERTS_FUNCTIONS.register(self.name, self)
            for module in model.modules():
                if is_experts(module):
                    module.config._experts_implementation = self.name  # type: ignore[union-attr]

    def __call__(
        self, module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states: (tokens, hidden); top_k_index, top_k_weights: (tokens, k). Returns (tokens, hidden)."""
        self.called.add(module)
        return call_out(Call(module, self._run, _like), hidden_states, top_k_index, top_k_weights)

    def _run(
        self, module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        if parts := self.parts.get(module):
            return _with_parts(module, hidden_states, top_k_index, top_k_weights, parts)
        eager = type(module).forward.__wrapped__  # type: ignore[attr-defined]  # what transformers' decorator wraps
        function: Any = ALL_EXPERTS_FUNCTIONS.get_interface(self._default or "eager", eager)
        return cast(torch.Tensor, function(module, hidden_states, top_k_index, top_k_weights))


def _like(module: nn.Module, hidden_states: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(hidden_states)


def is_experts(module: nn.Module) -> bool:
    """Whether transformers computes the module through its interface for experts."""
    wrapped = hasattr(type(module).forward, "__wrapped__") and hasattr(module, "_apply_gate")
    parallel = getattr(module, "_is_expert_parallel", False)  # which transformers 5.17 does not say, nor the norm below
    return wrapped and all(hasattr(module, fact) for fact in _FACTS) and not parallel


def is_dispatched(module: nn.Module) -> bool:
    """Whether experts have been computed by an `ExpertsBypass`."""
    function = ALL_EXPERTS_FUNCTIONS.get(cast(Any, module).config._experts_implementation)
    return isinstance(function, ExpertsBypass) and module in function.called


def expert_parameters(module: nn.Module) -> tuple[ExpertParameter, ...]:
    """The stacked weights of `is_experts`, in the module's order."""
    known = ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
    stacked = [
        (name, p)
        for name, p in module.named_parameters(recurse=False)
        if name in known and p.dim() == 3 and is_plain(p)
    ]
    shapes = [(name, p.shape if module.is_transposed else p.transpose(1, 2).shape) for name, p in stacked]
    return tuple(ExpertParameter(name, *shape) for name, shape in shapes)


def _with_parts(
    module: nn.Module, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, parts: Sequence[Part]
) -> torch.Tensor:
    (tokens, k), experts = index.shape, index.reshape(-1)
    pairs = x.repeat_interleave(k, dim=0)
    up = _project(module, "gate_up_proj" if module.has_gate else "up_proj", pairs, experts, parts, k)
    hidden = cast(Any, module)._apply_gate(up) if module.has_gate else cast(Any, module).act_fn(up)
    out = _project(module, "down_proj", hidden, experts, parts, k)
    if getattr(module, "has_post_expert_norm", False):
        out = cast(Any, module).post_expert_norm(out)
    return (out * weights.reshape(-1, 1)).view(tokens, k, -1).sum(1).to(x.dtype)


def _project(
    module: nn.Module, name: str, x: torch.Tensor, experts: torch.Tensor, parts: Sequence[Part], k: int
) -> torch.Tensor:
    """One product of each pair's expert, with the adapters' terms. x: (pairs, in). Returns (pairs, out)."""
    weight = cast(torch.Tensor, getattr(module, name))
    bias = cast(torch.Tensor, getattr(module, f"{name}_bias")) if module.has_bias else None
    y = x.new_empty(x.shape[0], weight.shape[2] if module.is_transposed else weight.shape[1])
    for expert in experts.unique().tolist():
        rows = (experts == expert).nonzero()[:, 0]
        matrix = weight[expert].T if module.is_transposed else weight[expert]
        y[rows] = F.linear(x[rows], matrix, None if bias is None else bias[expert])
    for op, factor, start, end, _ in parts:
        if op.fields["parameter"] == name:
            rows = slice(start * k, end * k)
            add_expert_low_rank_(y[rows], x[rows], experts[rows], op.fields["a"], op.fields["b"], factor)
    return y
