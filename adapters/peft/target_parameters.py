"""LoRA on parameters of the base by their names (`target_parameters`).

On the weight of a linear it is LoRA as on the linear itself; for a mixture's router it is the only one. On the stacked
weights of a mixture's experts, each expert has factors of its own, which PEFT keeps in two matrices: A with the expert
outermost, B with the expert innermost. Of several parameters of one module PEFT wraps the first one, then the wrapper,
so that the last one is outermost.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ..errors import AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from ..primitives import ExpertLowRank, LowRank, Primitive
from ..sites import ExpertParameter, Site, SiteKind
from .base import Base
from .config import LoraConfig
from .listing import listed
from .patterns import Deadline
from .targets import values_at
from .tensors import Checkpoint
from .variant import LoraVariant

_LINEARS = frozenset({SiteKind.LINEAR, SiteKind.HEAD, SiteKind.INNER})


class _Target(NamedTuple):
    """One parameter that an adapter is on.

    name: of the parameter. stacked: of experts; None for a linear's. wrapper: under which PEFT saves the factors.
    """

    site: Site
    name: str
    stacked: ExpertParameter | None
    wrapper: str


def compile_parameters(config: LoraConfig, checkpoint: Checkpoint, base: Base) -> dict[str, tuple[Primitive, ...]]:
    """Take the parameters' tensors from the checkpoint, and compile them. Raises AdapterError."""
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
        scaling = config.scaling(rank, alphas[target.name])
        primitive: Primitive
        if target.stacked is None:
            primitive = _factors(target, rank, scaling, checkpoint, base)
        else:
            primitive = _expert_factors(target, target.stacked, rank, scaling, checkpoint, base)
        sites[target.site.name] = (*sites.get(target.site.name, ()), primitive)
    return sites


def _targets(parameters: tuple[str, ...], base: Base) -> list[_Target]:
    found = [t for site in base.table.sites.values() for t in _targets_at(site, parameters)]
    missed = [end for end in parameters if not any(_matches(target.name, end) for target in found)]
    if missed:
        raise InvalidAdapter(
            f"target_parameters {listed(missed)}: no such weight of a linear, and no such stacked weights of experts "
            "that transformers' interface for experts computes, are in this base",
            param="target_parameters",
        )
    return found


def _targets_at(site: Site, parameters: tuple[str, ...]) -> Iterator[_Target]:
    if site.kind in _LINEARS and any(_matches(f"{site.name}.weight", end) for end in parameters):
        yield _Target(site, f"{site.name}.weight", None, site.name)
    if site.kind is not SiteKind.EXPERTS:
        return
    own = [p for p in site.parameters if any(_matches(f"{site.name}.{p.name}", end) for end in parameters)]
    for depth, parameter in enumerate(reversed(own)):
        yield _Target(site, f"{site.name}.{parameter.name}", parameter, site.name + ".base_layer" * depth)


def _matches(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _factors(target: _Target, rank: int, scaling: float, checkpoint: Checkpoint, base: Base) -> LowRank:
    """Return the factors of B A, which PEFT has in the layout of the stored weight, transposed in a Conv1D."""
    site, why = target.site, f"rank {rank} at {target.name} of this base takes"
    width_in, width_out = site.in_features, site.out_features
    rows, columns = (width_in, width_out) if site.transposed else (width_out, width_in)
    a = checkpoint.take(f"{target.wrapper}.lora_A.weight").require_shape((rank, columns), why)
    b = checkpoint.take(f"{target.wrapper}.lora_B.weight").require_shape((rows, rank), why)
    if site.transposed:
        a, b = b.transposed(), a.transposed()
    return LowRank(a.converted(base.dtype), b.converted(base.dtype, scaling))


def _expert_factors(
    target: _Target, stacked: ExpertParameter, rank: int, scaling: float, checkpoint: Checkpoint, base: Base
) -> ExpertLowRank:
    name, experts, width_in, width_out = stacked
    why = f"rank {rank} of {experts} experts at {target.name} of this base takes"
    a = checkpoint.take(f"{target.wrapper}.lora_A.weight").require_shape((experts * rank, width_in), why)
    b = checkpoint.take(f"{target.wrapper}.lora_B.weight").require_shape((width_out, rank * experts), why)
    by_expert = a.converted(base.dtype).view(experts, rank, width_in)
    fastest = b.converted(base.dtype, scaling).view(width_out, rank, experts)
    return ExpertLowRank(by_expert, fastest.permute(2, 0, 1).contiguous(), name)
