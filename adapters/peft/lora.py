"""LoRA (Hu et al. 2021, arXiv:2106.09685) to low-rank bypasses, with every scaling folded in.

    y += s · B (A x)      s = alpha / r, or alpha / sqrt(r) with rsLoRA, per module

Conv1D is no special case: PEFT's factors of it have the shapes of a linear layer's, and fan_in_fan_out only says how
the base stores its weight. Dropout is for training.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..bypass import Bypass, LowRank
from ..errors import AdapterTooLarge, InvalidAdapter
from ..sites import Site, SiteKind
from .base import Base, Named
from .config import LoraConfig
from .keys import Keys, check_complete, factors_of, sort_keys
from .patterns import Deadline
from .targets import targeted_sites, values_at
from .tensors import Checkpoint


@dataclass(frozen=True)
class _Module:
    site: Site
    rank: int
    scaling: float


@dataclass(frozen=True)
class _Factors:
    keys: Keys
    tensors: Mapping[str, torch.Tensor]

    def factors(self, module: _Module) -> tuple[Named, Named]:
        """A: (rank, in_features) and B: (out_features, rank)."""
        site, rank = module.site, module.rank
        a, b = (self._named(self.keys.factors[site.name][factor]) for factor in factors_of(site))
        why = f"rank {rank} at {site.name} of this base takes"
        return a.require_shape((rank, site.in_features), why), b.require_shape((site.out_features, rank), why)

    def _named(self, key: str) -> Named:
        return Named(key, self.tensors[key])


def compile_lora(config: LoraConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Every tensor of the checkpoint is served or found to be the base's own.

    Raises InvalidAdapter, UnsupportedAdapter, AdapterTooLarge.
    """
    modules = _modules(config, base)
    tensors = checkpoint.take_all()
    found = _Factors(sort_keys(tensors), tensors)
    embedding = _tied_embedding(config, modules, base)
    optional = {base.table.head} if embedding is not None else set()
    check_complete(found.keys, {name: factors_of(module.site) for name, module in modules.items()}, optional)
    factors = {name: found.factors(module) for name, module in modules.items() if name in found.keys.factors}
    if embedding is not None and base.table.head is not None:
        factors[base.table.head] = _tied_factors(*factors[embedding], factors.get(base.table.head))
    return Bypass(
        config.peft_type, {name: (_fold(module, *factors[name], base.dtype),) for name, module in modules.items()}
    )


def _modules(config: LoraConfig, base: Base) -> dict[str, _Module]:
    deadline = Deadline()
    names = targeted_sites(config.targets, base.table, deadline, tie=config.tie)
    ranks = values_at(config.ranks, config.r, names, "rank_pattern", deadline)
    alphas = values_at(config.alphas, config.alpha, names, "alpha_pattern", deadline)
    if (rank := max(ranks.values())) > base.max_rank:
        raise AdapterTooLarge(f"rank {rank} is over the server's limit of {base.max_rank}", param="r")
    return {
        name: _Module(base.table.sites[name], ranks[name], config.scaling(ranks[name], alphas[name])) for name in names
    }


def _tied_embedding(config: LoraConfig, modules: Mapping[str, _Module], base: Base) -> str | None:
    """The embedding whose factors are the head's too; None if there is no such pair."""
    embedding = base.table.tied_head
    return embedding if config.tie and embedding in modules and base.table.head in modules else None


def _tied_factors(a: Named, b: Named, saved: tuple[Named, Named] | None) -> tuple[Named, Named]:
    """The head's factors are the embedding's, transposed; PEFT shares them in memory and saves them twice."""
    tied = b.transposed(), a.transposed()
    for ours, theirs in zip(tied, saved or (), strict=False):
        if not torch.equal(ours.tensor, theirs.tensor):
            raise InvalidAdapter(f"{theirs.key} is not the transpose of {ours.key}, which ties it", param="files")
    return tied


def _fold(module: _Module, a: Named, b: Named, dtype: torch.dtype) -> LowRank:
    embed_scale = module.site.embed_scale if module.site.kind is SiteKind.EMBEDDING else 1.0
    return LowRank(a.converted(dtype), b.converted(dtype, module.scaling * embed_scale))
