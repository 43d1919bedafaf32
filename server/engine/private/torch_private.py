"""torch's private parts that every start of an engine uses. Those of its compiler are in `inductor_private.py`."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import guard_or_false

__all__ = ["MODULE_STATE", "bare_copy", "guard_or_false", "linear_pointwise", "multiplies_bfloat16", "packed_weight"]

NAMES: Mapping[str, str] = {
    "torch.fx.experimental.symbolic_shapes.guard_or_false": (
        "Compares two numbers of rows, of which one may be a symbol, without a guard on the compiled model. Instead: "
        "two forward functions: one for all logits, one for some."
    ),
    "(torch.nn.Module()._parameters, torch.nn.Module()._buffers, torch.nn.Module()._modules)": (
        "Layers are compared by their settings, all of `vars` but these; a bare copy has parameters of its own. "
        "Instead: the names under which nn.Module keeps them then; copy.deepcopy with a memo of all tensors."
    ),
    "(torch.nn.Module()._forward_hooks, torch.nn.Module()._forward_pre_hooks)": (
        "A bare copy of a module must not run the hooks of the original. Instead: the module's class built anew with "
        "its settings."
    ),
    "torch.nn.Module()._forward_hooks_with_kwargs": (
        "Says which of the hooks take keyword arguments: emptied with them. Instead: nothing: it goes with the hooks."
    ),
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": (
        "Whether this processor has 16-bit products; without them a bfloat16 model runs in float32. Instead: "
        "torch.cpu's questions about AVX512 and AMX, or a timed product."
    ),
    "torch.ops.mkldnn._reorder_linear_weight": (
        "Lays a weight out for oneDNN's kernels, which is up to 3 times as fast at the rows of a decode step. Instead:"
        " no packed weights: `pack_linears` returns 0."
    ),
    "torch.ops.mkldnn._linear_pointwise.default": (
        "Multiplies by a weight that is laid out so. Instead: no packed weights: `pack_linears` returns 0."
    ),
}

MODULE_STATE = ("_parameters", "_buffers", "_modules")
"""Where an nn.Module keeps what it owns, in `vars(module)`."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")

LinearPointwise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, str, list[float], str], torch.Tensor]


def bare_copy(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return `module` with some parameters replaced and without hooks; it shares everything else."""
    other = copy.copy(module)
    other._parameters = {**module._parameters, **parameters}  # type: ignore[dict-item]
    for hooks in _HOOKS:
        setattr(other, hooks, type(getattr(module, hooks))())
    return other


def multiplies_bfloat16() -> bool:
    """Return whether oneDNN has 16-bit products on this processor. Only where torch is built with oneDNN."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed_weight(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Return a copy of `weight` (out, in) in the layout that oneDNN chooses for inputs of so many rows."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed


def linear_pointwise() -> LinearPointwise:
    """Return oneDNN's product: of an input, a packed weight, a bias, and what is applied to the output after it."""
    product: LinearPointwise = torch.ops.mkldnn._linear_pointwise.default
    return product
