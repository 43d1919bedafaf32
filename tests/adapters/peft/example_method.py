"""GATED_LORA: y += gate ⊙ B (A x)."""

from ..bypass import Bypass
from .base import Base
from .config import MethodConfig
from .factored import low_rank
from .linears import sites_of
from .tensors import Checkpoint


def compile_gated_lora(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Fold the gate into B.

    Reads gated_A: (r, in_features); gated_B: (out_features, r); gated_gate: (out_features,). Raises AdapterError.
    """
    rank = config.fields.integer("r", 8, 1)
    sites = {}
    for site in sites_of(config, base):
        why = f"rank {rank} at {site.name} takes"
        a = checkpoint.take(f"{site.name}.gated_A").require_shape((rank, site.in_features), why).weights()
        b = checkpoint.take(f"{site.name}.gated_B").require_shape((site.out_features, rank), why).weights()
        gate = checkpoint.take(f"{site.name}.gated_gate").require_shape((site.out_features,), why).weights()
        sites[site.name] = (low_rank(site.name, a, gate[:, None] * b, base),)
    return Bypass(config.peft_type, sites)
