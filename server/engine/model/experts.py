"""Adapters inside mixtures of experts, behind transformers' interface for experts.

A step without such an adapter at a module runs what transformers would run there. Otherwise each expert computes

    out = W_down act(W_up x + Δ_up x) + Δ_down (...)

with the deltas of each token's own adapters: as transformers' grouped products do, on all pairs of a token and an
expert in the order of the experts, among them in that of the adapters. Expert parallelism is not served.

Classes that do not call that interface, but keep their experts in such weights, are computed so in steps with an
adapter there, and by their own forward in all others (`own_experts_private.py`).
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from peftserve.adapters.peft.plain import is_plain
from peftserve.adapters.sites import ExpertParameter
from peftserve.kernels.ops.experts.factory import ExpertTerms, expert_terms, warm_up
from peftserve.kernels.ops.experts.products import grouped_product
from peftserve.kernels.ops.experts.routing import Routing
from peftserve.kernels.ops.site_plan import OpSegment

from ..private.own_experts_private import OwnExperts, own_experts
from ..private.transformers_private import (
    ALL_EXPERTS_FUNCTIONS,
    eager_experts,
    experts_implementation,
    gate,
    has_post_norm,
    is_experts,
    set_experts_implementation,
)
from .callouts import Call, call_out

_names = itertools.count()


class ExpertsBypass:
    """The function by which all modules of experts of one model are computed. The hooks tell it of each step."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.name = f"peftserve_experts_{next(_names)}"
        self._parts: Mapping[nn.Module, Sequence[OpSegment]] = {}  # of the last step that had any
        self._terms: Mapping[nn.Module, ExpertTerms] | None = None  # of the parts; made by the first module of a step
        self._rows = 0  # of the step that they were made for
        self._working: frozenset[nn.Module] = frozenset()  # modules with adapters in this step
        self.called: set[nn.Module] = set()  # modules that really come here
        self._default: str | None = None
        if any(is_experts(module) for module in model.modules()):
            self._default = experts_implementation(model.config)
            ALL_EXPERTS_FUNCTIONS.register(self.name, self)
            for module in model.modules():
                if is_experts(module):
                    set_experts_implementation(cast(Any, module).config, self.name)
        for module in model.modules():
            if (own := own_experts(module)) is not None and expert_parameters(module):
                module.forward = partial(self._call_own, module, own, module.forward)
        kept = [module for module in model.modules() if keeps_experts(module)]
        if alike := {parameter for module in kept for parameter in expert_parameters(module)}:
            warm_up(sorted(alike), model.dtype, model.device)

    def begin(self, parts: Mapping[nn.Module, Sequence[OpSegment]]) -> None:
        """Set the step's work: segments by module. The very lists of the last such step are the same work."""
        self._working = frozenset(parts)
        same = parts.keys() == self._parts.keys() and all(own is self._parts[module] for module, own in parts.items())
        if parts and not same:
            self._parts, self._terms = parts, None

    def end(self) -> None:
        """Compute what the base does, until the next step begins."""
        self._working = frozenset()

    def __call__(
        self, module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Compute one module, called as transformers' interface calls it. Returns (tokens, hidden).

        hidden_states: (tokens, hidden). top_k_index, top_k_weights: (tokens, k), each token's experts.
        """
        self.called.add(module)
        return call_out(Call(module, self._run, _like), hidden_states, top_k_index, top_k_weights)

    def _run(
        self, module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        if module in self._working:
            terms = self._terms_of(hidden_states, len(hidden_states))[module]
            return _with_terms(module, hidden_states, top_k_index, top_k_weights, terms)
        function: Any = ALL_EXPERTS_FUNCTIONS.get_interface(self._default or "eager", eager_experts(module))
        return cast(torch.Tensor, function(module, hidden_states, top_k_index, top_k_weights))

    def _call_own(self, module: nn.Module, own: OwnExperts, base: Any, *args: torch.Tensor) -> torch.Tensor:
        """Compute a module of a class of `own_experts`, called as its forward `base` is."""
        self.called.add(module)

        def run(owner: nn.Module, *args: torch.Tensor) -> torch.Tensor:
            if owner not in self._working:
                return cast(torch.Tensor, base(*args))
            terms = self._terms_of(args[0], own.tokens(owner, *args))[owner]
            return own.run(owner, partial(_products, owner, own.num_experts(owner), terms), *args)

        return call_out(Call(module, run, _like), *args)

    def _terms_of(self, hidden_states: torch.Tensor, rows: int) -> Mapping[nn.Module, ExpertTerms]:
        if self._terms is None or self._rows != rows:
            self._terms, self._rows = expert_terms(self._parts, rows, hidden_states.device), rows
        return self._terms


def _like(module: nn.Module, hidden_states: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(hidden_states)


def keeps_experts(module: nn.Module) -> bool:
    """Return whether adapters may be on the stacked weights of a module."""
    return is_experts(module) or (own_experts(module) is not None and bool(expert_parameters(module)))


def tokens_of(module: nn.Module, args: tuple[torch.Tensor, ...]) -> int | None:
    """Return the tokens of a call of such a module; None of one that no `ExpertsBypass` has computed."""
    if (own := own_experts(module)) is not None:
        forward: Any = module.forward
        bypass = getattr(forward.func, "__self__", None) if isinstance(forward, partial) else None
        return own.tokens(module, *args) if isinstance(bypass, ExpertsBypass) else None
    function = ALL_EXPERTS_FUNCTIONS.get(experts_implementation(cast(Any, module).config))
    dispatched = isinstance(function, ExpertsBypass) and module in function.called
    whole = len(args) == 3 and args[0].dim() == 2 and len(args[0]) == len(args[1])
    return len(args[0]) if whole and dispatched else None


def is_swapped(module: nn.Module) -> bool:
    """Return whether the weights are stored as (experts, in, out) and the class does not say so."""
    own = own_experts(module)
    return own is not None and own.transposed


def is_transposed(module: nn.Module) -> bool:
    """Return whether the weights are stored as (experts, in, out)."""
    return is_swapped(module) or bool(getattr(module, "is_transposed", False))


def expert_parameters(module: nn.Module) -> tuple[ExpertParameter, ...]:
    """List the stacked weights of a module of experts, in the module's order."""
    known = ("gate_up_proj" if getattr(module, "has_gate", True) else "up_proj", "down_proj")
    stacked = [
        (name, p)
        for name, p in module.named_parameters(recurse=False)
        if name in known and p.dim() == 3 and is_plain(p)
    ]
    shapes = [(name, p.shape if is_transposed(module) else p.transpose(1, 2).shape) for name, p in stacked]
    return tuple(ExpertParameter(name, *shape) for name, shape in shapes)


def _with_terms(
    module: nn.Module, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, terms: ExpertTerms
) -> torch.Tensor:
    experts = cast(Any, module)
    routing = terms.route(index, experts.num_experts)
    up = _project(module, "gate_up_proj" if experts.has_gate else "up_proj", x[routing.tokens], routing, terms)
    hidden = gate(module, up) if experts.has_gate else experts.act_fn(up)
    out = _project(module, "down_proj", hidden, routing, terms)
    if has_post_norm(module):
        out = experts.post_expert_norm(out)
    return (routing.restored(out) * weights[..., None]).sum(1).to(x.dtype)


def _products(
    module: nn.Module, num_experts: int, terms: ExpertTerms, x: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """Compute each pair by its expert, as `Products` says, in a module of gated experts without biases."""
    routing = terms.route(index, num_experts)
    up = _project(module, "gate_up_proj", x.flatten(0, 1)[routing.order], routing, terms)
    gated, plain = up.chunk(2, dim=-1)
    return routing.restored(_project(module, "down_proj", plain * cast(Any, module).act_fn(gated), routing, terms))


def _project(module: nn.Module, name: str, x: torch.Tensor, routing: Routing, terms: ExpertTerms) -> torch.Tensor:
    """Multiply each pair by its expert's weight, and add the adapters' terms. x: (pairs, in). Returns (pairs, out)."""
    weight = cast(torch.Tensor, getattr(module, name))
    matrices = weight[: len(routing.ends)]  # more there are where some experts use none
    y = grouped_product(x, matrices if is_transposed(module) else matrices.mT, routing.ends)
    if getattr(module, "has_bias", False):
        y += cast(torch.Tensor, getattr(module, f"{name}_bias"))[routing.experts]
    terms.add_(name, x, y, routing)
    return y
