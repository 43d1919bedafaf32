"""The factors of a LoRA checkpoint, module by module: every tensor accounted for, every shape checked."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

import torch

from ..errors import AdapterTooLarge, InvalidAdapter
from ..sites import Site, SiteKind
from .base import Base, NamedTensor
from .config import LoraConfig
from .keys import PREFIX, check_complete, factors_of, sort_keys
from .lora_variants import extra_factors, stored_shapes
from .targets import targeted_sites, values_at
from .tensors import Checkpoint
from .variant import LoraVariant

# Kinds of models on whose `conv1d` PEFT 0.21 refuses a LoRA.
_NO_CONVOLUTIONS = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})


@dataclass(frozen=True)
class LoraModule:
    """The LoRA of one module.

    rank: of its factors. variant: the form that PEFT gives it at this module.
    factors: by PEFT's names. A: (rank, in_features) and B: (out_features, rank), or what the variant stores.
    """

    site: Site
    rank: int
    scaling: float
    variant: LoraVariant = field(default_factory=LoraVariant)
    factors: Mapping[str, NamedTensor] = field(default_factory=dict)

    @property
    def a(self) -> NamedTensor:
        """Return the factor A."""
        return self.factors[factors_of(self.site)[0]]

    @property
    def b(self) -> NamedTensor:
        """Return the factor B."""
        return self.factors[factors_of(self.site)[1]]


def read_modules(config: LoraConfig, checkpoint: Checkpoint, base: Base) -> dict[str, LoraModule]:
    """Take every tensor of the checkpoint that is left, and return module to its LoRA. Raises AdapterError."""
    variant = config.variant
    modules = _targeted(config, base)
    tensors = {key: tensor for key, tensor in checkpoint.take_all().items() if not _idle(key, variant, modules)}
    keys = sort_keys(tensors)
    wanted = {name: (*factors_of(m.site), *extra_factors(m.site, variant)) for name, m in modules.items()}
    embedding = _tied_embedding(config, modules, base)
    check_complete(keys, wanted, {base.table.head} if embedding is not None and not variant.dora else set())
    named = {
        name: {f: NamedTensor(key, tensors[key]) for f, key in found.items()} for name, found in keys.factors.items()
    }
    for name, module in modules.items():
        if name in named:
            modules[name] = module = replace(module, variant=_variant_at(module.site, named[name], variant, base))
            _check_shapes(module, named[name], module.variant)
    if embedding is not None and base.table.head is not None:
        named[base.table.head] = _tied_factors(named[embedding], named.get(base.table.head, {}))
    return {name: replace(module, factors=named[name]) for name, module in modules.items()}


def _targeted(config: LoraConfig, base: Base) -> dict[str, LoraModule]:
    deadline = base.deadline
    names = targeted_sites(config.targets, base.table, deadline, tie=config.tie, without=_idle_modules(base))
    ranks = values_at(config.ranks, config.r, names, "rank_pattern", deadline)
    alphas = values_at(config.alphas, config.alpha, names, "alpha_pattern", deadline)
    scalings = {name: config.scaling(ranks[name], alphas[name]) for name in names}
    embedding, head = _tied_embedding(config, names, base), base.table.head
    if embedding is not None and head is not None:
        ranks[head] = ranks[embedding]  # of the factors that they share; each is scaled by its own rank and alpha
    if (rank := max(ranks.values())) > base.max_rank:
        raise AdapterTooLarge(f"rank {rank} is over the server's limit of {base.max_rank}", param="r")
    return {name: LoraModule(base.table.sites[name], ranks[name], scalings[name]) for name in names}


def _idle_modules(base: Base) -> frozenset[str]:
    """Return the modules on which PEFT puts a LoRA that nobody calls: not on convolutions of all kinds of models."""
    kind = getattr(getattr(base.model, "config", None), "model_type", None)
    refused = "conv1d" if kind in _NO_CONVOLUTIONS else None
    return frozenset(name for name in base.table.uncalled if name.rpartition(".")[2] != refused)


def _idle(key: str, variant: LoraVariant, modules: Mapping[str, LoraModule]) -> bool:
    """Return whether only training uses a tensor."""
    return bool(variant.idle) and key.removeprefix(PREFIX).partition(f".{variant.idle}")[0] in modules


def _variant_at(site: Site, factors: Mapping[str, NamedTensor], variant: LoraVariant, base: Base) -> LoraVariant:
    """Return the variant at one module. PEFT makes a plain LoRA of QALoRA but on linear layers that are quantised."""
    if not variant.pool:
        return variant
    whole = tuple(factors[factors_of(site)[0]].tensor.shape[1:]) == (site.in_features,)
    plain = site.kind is SiteKind.EMBEDDING or (whole and not base.is_quantised(site.name))
    return replace(variant, pool=0) if plain else variant


def _check_shapes(module: LoraModule, factors: Mapping[str, NamedTensor], variant: LoraVariant) -> None:
    site, rank = module.site, module.rank
    why = f"rank {rank} at {site.name} of this base takes"
    for name, shape in zip(factors_of(site), stored_shapes(site, rank, variant), strict=True):
        factors[name].require_shape(shape, why)


def _tied_embedding(config: LoraConfig, modules: Container[str | None], base: Base) -> str | None:
    """Return the embedding whose factors are the head's too; None if there is no such pair."""
    embedding = base.table.tied_head
    return embedding if config.tie and embedding in modules and base.table.head in modules else None


def _tied_factors(embedding: Mapping[str, NamedTensor], saved: Mapping[str, NamedTensor]) -> dict[str, NamedTensor]:
    """Return the head's factors: the embedding's, transposed. PEFT shares them in memory and saves them twice."""
    tied = {"lora_A": embedding["lora_embedding_B"].transposed(), "lora_B": embedding["lora_embedding_A"].transposed()}
    for name, ours in tied.items():
        theirs = saved.get(name, ours)
        if not torch.equal(ours.tensor, theirs.tensor):
            raise InvalidAdapter(f"{theirs.key} is not the transpose of {ours.key}, which ties it", param="files")
    return {**saved, **tied}
