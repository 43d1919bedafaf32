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
from ..sites import ExpertParameter, Site, SiteKind, SiteTable
from .base import Base
from .config import LoraConfig
from .listing import listed
from .targets import matches_any, values_at
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
    targets, deadline = _targets(config, checkpoint, base), base.deadline
    if not targets:
        return {}
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


def note_on_parameters(config: LoraConfig, table: SiteTable) -> list[str]:
    """Say which of the names match no parameter of a base that the adapter fits: they have no effect, as in PEFT."""
    idle = _missed(config.parameters, _found(config.parameters, table))
    what = "target_parameters names what this base does not have, and is ignored there"
    return [f"{what}: {listed(idle)}"] if idle else []


def _targets(config: LoraConfig, checkpoint: Checkpoint, base: Base) -> list[_Target]:
    """Return what is targeted: nothing is an error only where the adapter is on no module either, as in PEFT."""
    found = _found(config.parameters, base.table)
    missed = _missed(config.parameters, found)
    there = [end for end in missed if _has_factors(end, found, checkpoint)]
    if there or not (found or matches_any(config.targets, base.table, base.deadline)):
        raise InvalidAdapter(
            f"target_parameters {listed(there or missed)}: no such weight of a linear, and no such stacked weights of "
            "experts that transformers' interface for experts computes, are in this base",
            param="target_parameters",
        )
    return found


def _found(parameters: tuple[str, ...], table: SiteTable) -> list[_Target]:
    return [target for site in table.sites.values() for target in _targets_at(site, parameters)]


def _missed(parameters: tuple[str, ...], found: list[_Target]) -> list[str]:
    return [end for end in parameters if not any(_matches(target.name, end) for target in found)]


def _has_factors(end: str, found: list[_Target], checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint has factors at the module of a parameter that the base does not have there."""
    module, sites = end.rpartition(".")[0], {target.site.name for target in found}
    wrapped = {name.partition(".lora_")[0].replace(".base_layer", "") for name in checkpoint if ".lora_" in name}
    return bool(module) and any(_matches(name, module) for name in wrapped - sites)


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
    columns, rows = (width_out, width_in) if target.site.swapped else (width_in, width_out)
    why = f"rank {rank} of {experts} experts at {target.name} of this base takes"
    a = checkpoint.take(f"{target.wrapper}.lora_A.weight").require_shape((experts * rank, columns), why)
    b = checkpoint.take(f"{target.wrapper}.lora_B.weight").require_shape((rows, rank * experts), why)
    by_expert = a.converted(base.dtype, scaling if target.site.swapped else 1.0).view(experts, rank, columns)
    fastest = b.converted(base.dtype, 1.0 if target.site.swapped else scaling).view(rows, rank, experts)
    if target.site.swapped:
        return ExpertLowRank(fastest.permute(2, 1, 0).contiguous(), by_expert.mT.contiguous(), name)
    return ExpertLowRank(by_expert, fastest.permute(2, 0, 1).contiguous(), name)
