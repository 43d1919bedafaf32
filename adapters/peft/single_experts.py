"""LoRA on the linears of single experts, as transformers 4 had them, on a base that keeps all experts in one tensor.

An adapter of that time has factors at `experts.<expert>.<linear>`. Here such a linear is a part of a stacked weight: it
is compiled as the linear that it was, under its own name, with its own rank and scaling, and then takes its place in
the factors of the stack. Gate and up are one product there, whose factor B has a block for each:

    [gate; up] += [[B_gate, 0], [0, B_up]] [A_gate; A_up] x
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import UnsupportedAdapter
from ..primitives import ExpertLowRank, LowRank, Primitive
from ..sites import ExpertParameter, Site, SiteKind
from .base import Base
from .tensors import Checkpoint

_KEY = re.compile(r"(?P<site>.+)\.\d+\.(?P<linear>[^.]+)\.lora_")
# What the linears of an expert are called: gate, up, down. Without a gate, up is the first product.
_LINEARS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("fc1", "fc3", "fc2"))


@dataclass(frozen=True)
class _Part:
    """Where a linear of one expert is in a stacked weight. first: of its outputs there."""

    site: str
    parameter: ExpertParameter
    expert: int
    first: int


@dataclass(frozen=True)
class SingleExperts:
    """The linears that an adapter is on and that the base has in other forms.

    parts: by the linear's name. base: with these linears, and with a mixture's router as the linear that it was.
    """

    base: Base
    parts: Mapping[str, _Part]

    def joined(self, sites: Mapping[str, tuple[Primitive, ...]]) -> dict[str, tuple[Primitive, ...]]:
        """Return the primitives with those of single experts joined to one for each stacked weight."""
        joined = {name: primitives for name, primitives in sites.items() if name not in self.parts}
        stacks: dict[tuple[str, str], list[tuple[_Part, LowRank]]] = {}
        for name, (low_rank, *_) in sites.items():
            if name in self.parts and isinstance(low_rank, LowRank):
                part = self.parts[name]
                stacks.setdefault((part.site, part.parameter.name), []).append((part, low_rank))
        for (site, _), members in stacks.items():
            joined[site] = (*joined.get(site, ()), _stacked(members))
        return joined


def single_experts(checkpoint: Checkpoint, base: Base, *, plain: bool) -> SingleExperts:
    """Return the linears of single experts that a checkpoint has factors for.

    plain: whether they are those of plain LoRA. Raises UnsupportedAdapter where they are not, or are stacked otherwise.
    """
    table, names = base.table, {name.partition(".lora_")[0] for name in checkpoint}
    linears: dict[str, set[str]] = {}
    for match in filter(None, map(_KEY.match, checkpoint)):
        linears.setdefault(match["site"], set()).add(match["linear"])
    found = [site for site in table.sites.values() if site.kind is SiteKind.EXPERTS and site.name in linears]
    parts = {name: part for site in found for name, part in _parts(site, linears[site.name]).items()}
    routers = {name: site for name, site in table.sites.items() if site.kind is SiteKind.INNER and name in names}
    if not plain and (parts or routers):
        raise UnsupportedAdapter(
            "on experts and routers, which this base has as parameters, only plain LoRA is supported",
            param="target_modules",
        )
    own = {name: replace(site, kind=SiteKind.LINEAR) for name, site in routers.items()}
    own |= {name: _linear(name, part) for name, part in parts.items()}
    return SingleExperts(replace(base, table=replace(table, sites={**table.sites, **own})), parts)


def _parts(site: Site, linears: set[str]) -> dict[str, _Part]:
    """Return the linears of a module of experts by name, in the form of names that has most of those given."""
    if site.transposed:
        raise UnsupportedAdapter(
            f"{site.name} of this base has its experts' weights transposed; LoRA on single experts is not supported "
            "there, only target_parameters",
            param="target_modules",
        )
    gate, up, down = max(_LINEARS, key=lambda form: len(linears.intersection(form)))
    inside = {"gate_up_proj": (gate, up), "up_proj": (up,), "down_proj": (down,)}
    return {
        f"{site.name}.{expert}.{linear}": _Part(site.name, parameter, expert, i * _outputs(parameter))
        for parameter in site.parameters
        for i, linear in enumerate(inside[parameter.name])
        for expert in range(parameter.experts)
    }


def _outputs(parameter: ExpertParameter) -> int:
    """Return the outputs of each linear in a stacked weight."""
    return parameter.out_features // (2 if parameter.name == "gate_up_proj" else 1)


def _linear(name: str, part: _Part) -> Site:
    return Site(name, SiteKind.LINEAR, part.parameter.in_features, _outputs(part.parameter))


def _stacked(members: list[tuple[_Part, LowRank]]) -> ExpertLowRank:
    """Return the factors of a stacked weight: an expert's are its linears', one below the other; zeros without any."""
    parameter = members[0][0].parameter
    ranks = {part.first: 0 for part, _ in members}
    for part, low_rank in members:
        ranks[part.first] = max(ranks[part.first], low_rank.rank)
    offsets = {first: sum(rank for other, rank in ranks.items() if other < first) for first in ranks}
    like = members[0][1].a
    a = like.new_zeros(parameter.experts, sum(ranks.values()), parameter.in_features)
    b = like.new_zeros(parameter.experts, parameter.out_features, sum(ranks.values()))
    for part, low_rank in members:
        rows = slice(offsets[part.first], offsets[part.first] + low_rank.rank)
        a[part.expert, rows] = low_rank.a
        b[part.expert, part.first : part.first + len(low_rank.b), rows] = low_rank.b
    return ExpertLowRank(a, b, parameter.name)
