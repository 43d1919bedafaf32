"""The configuration of AdapterHub's prefix tuning. Knows no tensors and no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..peft.fields import Fields
from ..peft.unsupported import refuse_fields, unsupported
from .bottleneck_config import parse_activation
from .lora_config import GATED
from .models import Layout

_REFUSED: Mapping[str, str] = {
    "use_gating": GATED,
    "leave_out": "the layers of a sequence would have different numbers of keys; train without",
}
_READ = "architecture flat prefix_length bottleneck_size non_linearity"
_KNOWN = frozenset(f"{_READ} encoder_prefix cross_prefix dropout shared_gating init_weights_seed".split())


@dataclass(frozen=True)
class PrefixConfig:
    """A prefix of keys and values. hidden: width of the network that makes them; None where they are themselves saved.

    activation: of that network, as `kernels/ops/formulas.py` names it.
    """

    length: int
    hidden: int | None
    activation: str
    method: str = "PREFIX_TUNING"


def parse_prefix(own: Mapping[str, Any], layout: Layout) -> PrefixConfig:
    """Parse a prefix's configuration for a kind of model. Raises InvalidAdapter, UnsupportedAdapter."""
    refuse_fields(own, _REFUSED, _KNOWN)
    if not layout.prefixes:
        raise unsupported(
            "AdapterHub's prefix tuning on this kind of model", "its own library has none there", param="model_type"
        )
    fields = Fields(own)
    length = fields.integer("prefix_length", 30, 1)
    if fields.boolean("flat"):
        return PrefixConfig(length, None, "")
    return PrefixConfig(length, fields.integer("bottleneck_size", 512, 1), parse_activation(fields))
