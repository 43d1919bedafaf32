"""LoRA (Hu et al. 2021, arXiv:2106.09685) compiled to low-rank bypasses, with every scaling folded in.

    y += s · B (A x)      s = alpha / r, or alpha / sqrt(r) with rsLoRA, per module

Conv1D is no special case: PEFT's factors of it have the shapes of a linear layer's, and fan_in_fan_out only says how
the base stores its weight. Dropout is for training.
"""

from ..bypass import Bypass
from ..primitives import Primitive
from .arrow import compile_arrow
from .base import Base
from .config import LoraConfig
from .lora_factors import read_modules
from .lora_variants import primitives_of
from .single_experts import single_experts
from .target_parameters import compile_parameters
from .targets import matches_any
from .tensors import Checkpoint
from .variant import LoraVariant


def compile_lora(config: LoraConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a LORA adapter of any variant, with every tensor of the checkpoint that is left. Raises AdapterError."""
    variant = config.variant
    if variant.arrow is not None:
        return compile_arrow(config, variant.arrow, checkpoint, base)
    sites = compile_parameters(config, checkpoint, base)
    for name, primitives in _compile_modules(config, checkpoint, base, optional=bool(sites)).items():
        sites[name] = (*sites.get(name, ()), *primitives)
    exclusive = ("DoRA",) if variant.dora else ()
    return Bypass(config.peft_type, sites, invocation=variant.invocation, exclusive=exclusive)


def _compile_modules(
    config: LoraConfig, checkpoint: Checkpoint, base: Base, *, optional: bool
) -> dict[str, tuple[Primitive, ...]]:
    """Compile what is on modules. optional: whether `target_modules` may match none, as something else is targeted."""
    if not config.targets.modules:
        return {}
    singles = single_experts(checkpoint, base, plain=config.variant == LoraVariant())
    if optional and not matches_any(config.targets, singles.base.table, base.deadline):
        return {}
    modules = read_modules(config, checkpoint, singles.base)
    compiled = {name: primitives_of(m.site, m.factors, m.scaling, m.variant, base) for name, m in modules.items()}
    return dict(singles.joined(compiled))
