"""The configuration of a bottleneck adapter. Knows no tensors and no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..errors import InvalidAdapter, UnsupportedAdapter
from ..peft.fields import Fields
from ..peft.unsupported import refuse_fields, unsupported
from .models import Layout

# AdapterHub's names to those of `kernels/ops/formulas.py`.
ACTIVATIONS: Mapping[str, str] = {
    "relu": "relu",
    "leakyrelu": "leaky_relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "mish": "mish",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
SMALLEST_FACTOR, LARGEST_FACTOR = 2**-10, 2**30

_REFUSED: Mapping[str, str] = {
    "inv_adapter": "invertible adapters at the embedding are not served; train with inv_adapter=None",
    "cross_adapter": "a decoder alone has no cross-attention; train with cross_adapter=False",
    "use_gating": "the gate is an average over the sequence, so the answer would depend on later tokens; train without",
    "phm_layer": "Compacter's hypercomplex layers are not served; train with phm_layer=False",
    "ln_before": "a norm inside of the adapter is not served; train with ln_before=False",
    "ln_after": "a norm inside of the adapter is not served; train with ln_after=False",
}
_READ = "architecture mh_adapter output_adapter reduction_factor non_linearity is_parallel scaling leave_out "
_READ += "original_ln_before original_ln_after residual_before_ln"
# Fields of training, of initialisation, or of options that are refused.
_IGNORED = """
init_weights init_weights_seed dropout stochastic_depth adapter_residual_before_ln inv_adapter_reduction_factor phm_dim
factorized_phm_W shared_W_phm shared_phm_rule factorized_phm_rule phm_c_init phm_init_range learn_phm
hypercomplex_nonlinearity phm_rank phm_bias
"""
_KNOWN = frozenset(f"{_READ} {_IGNORED}".split())


class Form(StrEnum):
    """The input of the network. y: the output of attention or feed-forward. r: the residual stream before its norm."""

    OUTPUT = "y"  # Houlsby
    SUM = "y + r"  # Pfeiffer and Adapter+
    RESIDUAL = "r"  # parallel


# Keyed by original_ln_before, original_ln_after and residual_before_ln: those whose result is `y + r` plus the output.
_SEQUENTIAL: Mapping[tuple[bool, bool, bool], Form] = {
    (False, True, True): Form.OUTPUT,
    (False, True, False): Form.OUTPUT,
    (True, True, True): Form.SUM,
    (True, False, False): Form.SUM,
}


@dataclass(frozen=True)
class BottleneckConfig:
    """A bottleneck adapter. attention, feed_forward: where it is.

    factors: layer's number, or `default`, to the divisor of the base's width. leave_out: layers without a bottleneck.
    scaling: a number, or a learned one: a single number (`learned`) or one for each feature (`channel`).
    """

    form: Form
    attention: bool
    feed_forward: bool
    factors: Mapping[str, float]
    activation: str
    scaling: float | str
    leave_out: tuple[int, ...]
    method: str = "BOTTLENECK"

    def width(self, layer: int, features: int) -> int:
        """Return the width of the bottleneck. Raises InvalidAdapter for a layer without a reduction factor."""
        factor = self.factors.get(str(layer), self.factors.get("default"))
        if factor is None:
            raise InvalidAdapter(
                f"reduction_factor says nothing of layer {layer} and has no default", param="reduction_factor"
            )
        return max(int(features // factor), 1)


def parse_bottleneck(own: Mapping[str, Any], layout: Layout) -> BottleneckConfig:
    """Parse a bottleneck's configuration for a kind of model. Raises InvalidAdapter, UnsupportedAdapter."""
    refuse_fields(own, _REFUSED, _KNOWN)
    fields = Fields(own)
    if layout.attention is None or layout.feed_forward is None:
        raise unsupported(
            "a bottleneck of AdapterHub on this kind of model",
            "its blocks have norms, or a residual stream, of their own; train LoRA",
            param="model_type",
        )
    return BottleneckConfig(
        form=_form(fields, layout.hooked),
        attention=fields.boolean("mh_adapter"),
        feed_forward=fields.boolean("output_adapter"),
        factors=_factors(fields),
        activation=parse_activation(fields),
        scaling=_scaling(fields),
        leave_out=fields.integers("leave_out"),
    )


def _form(fields: Fields, hooked: bool) -> Form:
    """Return the form. Raises UnsupportedAdapter where the library would drop the residual stream, or add it twice."""
    before, after = fields.boolean("original_ln_before"), fields.boolean("original_ln_after", True)
    if fields.boolean("is_parallel"):
        form = Form.RESIDUAL if after else None
    elif fields.value("residual_before_ln") == "post_add":
        form = None
    else:
        form = _SEQUENTIAL.get((before, after, fields.boolean("residual_before_ln", True)))
    if form is None or (hooked and not after):
        raise unsupported(
            "this combination of original_ln_before, original_ln_after and residual_before_ln",
            "on a model whose norms come first the residual stream would be lost or added twice; train with "
            "DoubleSeqBnConfig, SeqBnConfig, ParBnConfig or AdapterPlusConfig as they are",
            param="original_ln_after",
        )
    return form


def _factors(fields: Fields) -> Mapping[str, float]:
    value = fields.value("reduction_factor")
    is_map = isinstance(value, dict)
    factors = fields.number_map("reduction_factor") if is_map else {"default": fields.number("reduction_factor", 0.0)}
    for factor in factors.values():
        if not SMALLEST_FACTOR <= factor <= LARGEST_FACTOR:
            raise InvalidAdapter(
                f"reduction_factor must be from {SMALLEST_FACTOR} to {LARGEST_FACTOR}, not {factor}",
                param="reduction_factor",
            )
    return factors


def parse_activation(fields: Fields) -> str:
    """Return the name in `kernels/ops/formulas.py` of `non_linearity`. Raises InvalidAdapter, UnsupportedAdapter."""
    name = fields.value("non_linearity")
    if not isinstance(name, str):
        raise InvalidAdapter(f"non_linearity must be a name, not {repr(name)[:80]}", param="non_linearity")
    if name.lower() not in ACTIVATIONS:
        raise UnsupportedAdapter(
            f"non_linearity={name[:80]!r} is not supported yet: served are {', '.join(ACTIVATIONS)}",
            param="non_linearity",
        )
    return ACTIVATIONS[name.lower()]


def _scaling(fields: Fields) -> float | str:
    if isinstance(fields.value("scaling"), str):
        return fields.choice("scaling", "", ("learned", "channel"))
    scaling = fields.number("scaling", 1.0)
    if scaling == 0:
        raise InvalidAdapter("scaling is 0: the adapter would change nothing", param="scaling")
    return scaling
