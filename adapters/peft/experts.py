"""LoRA on the stacked parameters of a mixture's experts (`target_parameters`), each expert with factors of its own.

PEFT keeps the factors of all experts in two matrices: A with the expert outermost, B with the expert innermost. Of
several parameters of one module it wraps the first one, then the wrapper, so that the last one is outermost.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ..errors import AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from ..primitives import ExpertLowRank, Primitive
from ..sites import ExpertParameter, Site, SiteKind
from .base import Base
from .config import LoraConfig
from .listing import listed
from .patterns import Deadline
from .targets import values_at
from .tensors import Checkpoint
from .variant import LoraVariant


class _Target(NamedTuple):
    """wrapper: the name under which PEFT saves the factors."""

    site: Site
    parameter: ExpertParameter
    wrapper: str

    @property
    def name(self) -> str:
        return f"{self.site.name}.{self.parameter.name}"


def compile_experts(config: LoraConfig, checkpoint: Checkpoint, base: Base) -> dict[str, tuple[Primitive, ...]]:
    """Takes the experts' tensors from the checkpoint. Raises AdapterError."""
    if not config.parameters:
        return {}
    if config.variant != LoraVariant():
        raise UnsupportedAdapter("target_parameters goes with plain LoRA only", param="target_parameters")
    targets, deadline = _targets(config.parameters, base), Deadline()
    names = [target.name for target in targets]
    ranks = values_at(config.ranks, config.r, names, "rank_pattern", deadline)
    alphas = values_at(config.alphas, config.alpha, names, "alpha_pattern", deadline)
    if (largest := max(ranks.values())) > base.max_rank:
        raise AdapterTooLarge(f"rank {largest} is over the server's limit of {base.max_rank}", param="r")
    sites: dict[str, tuple[Primitive, ...]] = {}
    for target in targets:
        rank = ranks[target.name]
        primitive = _factors(target, rank, config.scaling(rank, alphas[target.name]), checkpoint, base)
        sites[target.site.name] = (*sites.get(target.site.name, ()), primitive)
    return sites


def _targets(parameters: tuple[str, ...], base: Base) -> list[_Target]:
    found = [t for site in base.table.sites.values() for t in _targets_at(site, parameters)]
    missed = [end for end in parameters if not any(_matches(target.name, end) for target in found)]
    if missed:
        raise InvalidAdapter(
            f"target_parameters {listed(missed)}: no such stacked weights of experts are computed by this base "
            "through transformers' interface for experts",
            param="target_parameters",
        )
    return found


def _targets_at(site: Site, parameters: tuple[str, ...]) -> Iterator[_Target]:
    if site.kind is not SiteKind.EXPERTS:
        return
    own = [p for p in site.parameters if any(_matches(f"{site.name}.{p.name}", end) for end in parameters)]
    for depth, parameter in enumerate(reversed(own)):
        yield _Target(site, parameter, site.name + ".base_layer" * depth)


def _matches(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _factors(target: _Target, rank: int, scaling: float, checkpoint: Checkpoint, base: Base) -> ExpertLowRank:
    _, experts, width_in, width_out = target.parameter
    why = f"rank {rank} of {experts} experts at {target.name} of this base takes"
    a = checkpoint.take(f"{target.wrapper}.lora_A.weight").require_shape((experts * rank, width_in), why)
    b = checkpoint.take(f"{target.wrapper}.lora_B.weight").require_shape((width_out, rank * experts), why)
    stacked = a.converted(base.dtype).view(experts, rank, width_in)
    fastest = b.converted(base.dtype, scaling).view(width_out, rank, experts)
    return ExpertLowRank(stacked, fastest.permute(2, 0, 1).contiguous(), target.parameter.name)
