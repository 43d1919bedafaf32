"""LoRA experts between which Arrow routes each token (Ostapenko et al. 2024, arXiv:2405.11157).

    y += Σ_e gate_e(x) · s_e B_e (A_e x)    gate = softmax over the top k of |prototypes x|, divided by a temperature

An expert's prototype is the direction that its B A enlarges most. GenKnowSub (arXiv:2505.10939) first subtracts the
mean of the general adapters' factors from each expert's. The router's own factors are in its checkpoint, and unused.
"""

from collections.abc import Mapping, Sequence

import torch

from ..bypass import Bypass
from ..errors import InvalidAdapter, UnsupportedAdapter, prefix_errors
from ..primitives import RoutedLowRank
from .base import Base, NamedTensor
from .config import AuxiliaryConfig, LoraConfig
from .lora_factors import LoraModule, read_modules
from .tensors import Checkpoint
from .variant import Arrow, LoraVariant

_ITERATIONS = 15
_EPSILON = 1e-8

Modules = Mapping[str, LoraModule]


def compile_arrow(config: LoraConfig, arrow: Arrow, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a router with its experts. Raises AdapterError."""
    router = read_modules(config, checkpoint, base)
    for module in router.values():
        module.a.weights(), module.b.weights()  # unused, but NaN in them is refused like in any file
    tasks = [_expert(name, checkpoint, router, base) for name in arrow.tasks]
    general = [_expert(name, checkpoint, router, base) for name in arrow.general]
    sites = {name: (_routed([e[name] for e in tasks], [e[name] for e in general], arrow, base),) for name in router}
    return Bypass(config.peft_type, sites)


def _expert(name: str, checkpoint: Checkpoint, router: Modules, base: Base) -> Modules:
    config, tensors = checkpoint.expert(name)
    if not isinstance(config, LoraConfig) or not _is_plain(config):
        raise UnsupportedAdapter(f"the expert {name} is not plain LoRA, which is all that Arrow routes", param="files")
    with prefix_errors(name):
        modules = read_modules(config, tensors, base)
    if modules.keys() != router.keys():
        raise InvalidAdapter(f"the expert {name} is on other modules than the router", param="target_modules")
    if wrong := next((site for site in modules if modules[site].rank != router[site].rank), None):
        raise InvalidAdapter(
            f"the expert {name} has rank {modules[wrong].rank} at {wrong}, the router {router[wrong].rank}", param="r"
        )
    return modules


def _is_plain(config: LoraConfig) -> bool:
    return config.variant == LoraVariant() and config.auxiliary == AuxiliaryConfig() and not config.parameters


def _routed(tasks: Sequence[LoraModule], general: Sequence[LoraModule], arrow: Arrow, base: Base) -> RoutedLowRank:
    a = [_purified(task.a, [g.a for g in general]) for task in tasks]
    b = [_purified(task.b, [g.b for g in general]) for task in tasks]
    prototypes = [_prototype(x.weights(), y.weights(), arrow.seed) for x, y in zip(a, b, strict=True)]
    return RoutedLowRank(
        a=torch.stack([factor.converted(base.dtype) for factor in a]),
        b=torch.stack([f.converted(base.dtype, t.scaling).T for f, t in zip(b, tasks, strict=True)]),
        prototypes=torch.stack(prototypes).to(base.dtype),
        top_k=arrow.top_k,
        temperature=arrow.temperature,
    )


def _purified(factor: NamedTensor, general: Sequence[NamedTensor]) -> NamedTensor:
    if not general:
        return factor
    mean = torch.stack([other.weights() for other in general]).mean(0)
    return factor._replace(tensor=factor.weights() - mean)


def _prototype(a: torch.Tensor, b: torch.Tensor, seed: int) -> torch.Tensor:
    """Compute the first right singular vector of b a, (in_features,) in float32, by as many power iterations as PEFT.

    a: (rank, in_features). b: (out_features, rank). seed: of the start, which 15 iterations do not quite forget.
    """
    squared = b.T @ b
    vector: torch.Tensor = torch.randn(a.shape[1], generator=torch.Generator().manual_seed(seed))
    vector = vector / (vector.norm() + _EPSILON)
    for _ in range(_ITERATIONS):
        vector = a.T @ (squared @ (a @ vector))
        vector = vector / (vector.norm() + _EPSILON)
    return vector
