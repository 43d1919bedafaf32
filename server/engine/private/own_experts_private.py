"""Mixtures of experts with stacked weights that transformers computes otherwise than by its interface for experts.

A row of OWN says, by the full name of a class, how its weights lie, and how its forward comes of the products of pairs
of a token and an expert.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

__all__ = ["OWN", "OwnExperts", "own_experts"]

_LLAMA4 = "transformers.models.llama4.modeling_llama4.Llama4TextExperts"
_LONGCAT = "transformers.models.longcat_flash.modeling_longcat_flash.LongcatFlashExperts"
_WHY = "Where its experts' weights lie. Without it, adapters inside these experts are refused, all others served."

NAMES: Mapping[str, str] = {_LLAMA4: _WHY, _LONGCAT: _WHY}


class Products(Protocol):
    """What the experts of one module make of the inputs of each pair, the adapters' terms included."""

    def __call__(self, x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """x: (tokens, k, hidden). experts: (tokens, k), the expert of each pair. Returns (tokens, k, hidden)."""


@dataclass(frozen=True)
class OwnExperts:
    """One class of experts.

    num_experts: that have weights. transposed: whether these are stored as (experts, in, out), of which the class says
    nothing. tokens: how many there are, of what its forward is called with. run: in place of its forward, called with
    the module, its products, and what that is called with.
    """

    num_experts: Callable[[Any], int]
    transposed: bool
    tokens: Callable[..., int]
    run: Callable[..., torch.Tensor]


def own_experts(module: nn.Module) -> OwnExperts | None:
    """Return the row of a module's class; None if it has none."""
    return OWN.get(f"{type(module).__module__}.{type(module).__qualname__}")


def _llama4(module: Any, products: Products, hidden_states: torch.Tensor) -> torch.Tensor:
    """Every expert is given every token, scaled by its score. hidden_states: (experts · tokens, hidden)."""
    by_token = hidden_states.view(module.num_experts, -1, hidden_states.shape[-1]).transpose(0, 1)
    experts = torch.arange(module.num_experts, device=hidden_states.device).expand(len(by_token), -1)
    return products(by_token, experts).transpose(0, 1).reshape(hidden_states.shape)


def _longcat(
    module: Any, products: Products, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Experts behind those with weights give back what they are given."""
    has_weights = top_k_index < module.num_routed_experts
    given = hidden_states[:, None].expand(-1, top_k_index.shape[1], -1)
    made = products(given, torch.where(has_weights, top_k_index, 0))
    out = torch.where(has_weights[..., None], made, given) * top_k_weights[..., None]
    return out.to(hidden_states.dtype).sum(1)


OWN: Mapping[str, OwnExperts] = {
    _LLAMA4: OwnExperts(
        lambda module: module.num_experts, True, lambda module, x: len(x) // module.num_experts, _llama4
    ),
    _LONGCAT: OwnExperts(
        lambda module: module.num_routed_experts, False, lambda module, x, index, weights: len(x), _longcat
    ),
}
