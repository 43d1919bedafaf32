"""Methods that scale, shift or replace vectors of the base.

IA3 (Liu et al. 2022, arXiv:2205.05638)         y = l ⊙ (W x + b), or W (l ⊙ x) + b   OutputScale, InputScale
BEFT (bias terms of value projections)          y = W x + b + β                       Bias
LN_TUNING (Zhao et al. 2023, arXiv:2312.11420)  the module with its own parameters    Replacement
"""

from collections.abc import Callable

import torch

from ..bypass import Bypass
from ..primitives import Bias, InputScale, OutputScale, Primitive, Replacement
from ..sites import Site
from .base import Base, NamedTensor
from .config import MethodConfig
from .linears import ALL_KINDS, sites_of
from .patterns import Pattern
from .saved_modules import stored_shape
from .tensors import Checkpoint


def compile_ia3(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile an IA3 adapter.

    Reads ia3_l: (1, in_features) at a feedforward module, (out_features, 1) at any other. Raises InvalidAdapter.
    """
    is_feedforward = _feedforward(config, base)
    sites = {}
    for site in sites_of(config, base):
        scale = checkpoint.take(f"{site.name}.ia3_l")
        sites[site.name] = (_scale(site, scale, is_feedforward(site, scale.tensor), base.dtype),)
    return Bypass(config.peft_type, sites)


def _feedforward(config: MethodConfig, base: Base) -> Callable[[Site, torch.Tensor], bool]:
    """Return the predicate for modules whose input is scaled. PEFT compares ends of names without regard to dots.

    A configuration without the field is left to PEFT's defaults by architecture: the tensors' shapes tell the same.
    """
    if config.fields.value("feedforward_modules") is None:
        return lambda site, scale: scale.shape == (1, site.in_features)
    modules = config.fields.names_or_pattern("feedforward_modules")
    if isinstance(modules, tuple):
        return lambda site, _: site.name.endswith(modules)
    if not modules:
        return lambda site, _: False
    pattern = Pattern(modules, "feedforward_modules", base.deadline)
    return lambda site, _: pattern.fullmatch(site.name)


def _scale(site: Site, scale: NamedTensor, feedforward: bool, dtype: torch.dtype) -> Primitive:
    if feedforward:
        scale.require_shape((1, site.in_features), f"the feedforward module {site.name} takes")
        return InputScale(_less_one(scale, dtype))
    scale.require_shape((site.out_features, 1), f"{site.name}, not among the feedforward_modules, takes")
    return OutputScale(_less_one(scale, dtype))


def _less_one(scale: NamedTensor, dtype: torch.dtype) -> torch.Tensor:
    values = scale.converted(torch.float32).flatten()
    return NamedTensor(scale.key, values - 1).converted(dtype)


def compile_beft(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a BEFT adapter. Reads beft_bias: (1, out_features). Raises InvalidAdapter."""
    return Bypass(config.peft_type, {site.name: (_bias(site, checkpoint, base),) for site in sites_of(config, base)})


def _bias(site: Site, checkpoint: Checkpoint, base: Base) -> Bias:
    bias = checkpoint.take(f"{site.name}.beft_bias").require_shape((1, site.out_features), f"{site.name} takes")
    return Bias(bias.converted(base.dtype).flatten())


def compile_ln_tuning(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile an LN_TUNING adapter.

    Reads ln_tuning_layers.weight and .bias, in the shapes in which the module, of any kind, stores its own.
    Raises InvalidAdapter.
    """
    sites = sites_of(config, base, ALL_KINDS)
    return Bypass(config.peft_type, {site.name: (_replacement(site, checkpoint, base),) for site in sites})


def _replacement(site: Site, checkpoint: Checkpoint, base: Base) -> Replacement:
    name = f"{site.name}.ln_tuning_layers"
    weight = checkpoint.take(f"{name}.weight").require_shape(stored_shape(site), f"the weight of {site.name} takes")
    has_bias = base.model is not None and base.parameter(site.name, "bias") is not None
    bias = checkpoint.take(f"{name}.bias") if has_bias else None
    if bias is None:
        return Replacement(weight.converted(base.dtype))
    bias.require_shape((site.out_features,), f"the bias of {site.name} takes")
    return Replacement(weight.converted(base.dtype), bias.converted(base.dtype))
