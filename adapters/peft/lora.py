"""LoRA (Hu et al. 2021, arXiv:2106.09685) to low-rank bypasses, with every scaling folded in.

    y += s · B (A x)      s = alpha / r, or alpha / sqrt(r) with rsLoRA, per module

Conv1D is no special case: PEFT's factors of it have the shapes of a linear layer's, and fan_in_fan_out only says how
the base stores its weight. Dropout is for training.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter
from ..sites import Site
from .base import Base, Named
from .config import LoraConfig
from .experts import compile_experts
from .keys import PREFIX, check_complete, factors_of, sort_keys
from .lora_variants import extra_factors, primitives_of, stored_shapes
from .patterns import Deadline
from .targets import targeted_sites, values_at
from .tensors import Checkpoint
from .variant import LoraVariant


@dataclass(frozen=True)
class _Module:
    site: Site
    rank: int
    scaling: float


def compile_lora(config: LoraConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Every tensor of the checkpoint that is left is served. Raises AdapterError."""
    experts = compile_experts(config, checkpoint, base)
    if not config.targets.modules:
        return Bypass(config.peft_type, experts)
    variant = config.variant
    modules = _modules(config, base)
    tensors = {key: tensor for key, tensor in checkpoint.take_all().items() if not _idle(key, variant, modules)}
    keys = sort_keys(tensors)
    wanted = {name: (*factors_of(m.site), *extra_factors(m.site, variant)) for name, m in modules.items()}
    embedding = _tied_embedding(config, modules, base)
    check_complete(keys, wanted, {base.table.head} if embedding is not None and not variant.dora else set())
    named = {name: {f: Named(key, tensors[key]) for f, key in found.items()} for name, found in keys.factors.items()}
    factors = {name: _factors(module, named[name], variant) for name, module in modules.items() if name in named}
    if embedding is not None and base.table.head is not None:
        factors[base.table.head] = _tied_factors(factors[embedding], factors.get(base.table.head, {}))
    sites = {
        name: primitives_of(module.site, factors[name], module.scaling, variant, base)
        for name, module in modules.items()
    }
    sites |= experts
    exclusive = ("DoRA",) if variant.dora else ()
    return Bypass(config.peft_type, sites, invocation=variant.invocation, exclusive=exclusive)


def _idle(key: str, variant: LoraVariant, modules: Mapping[str, _Module]) -> bool:
    """Whether only training uses a tensor."""
    return bool(variant.idle) and key.removeprefix(PREFIX).partition(f".{variant.idle}")[0] in modules


def _factors(module: _Module, factors: Mapping[str, Named], variant: LoraVariant) -> Mapping[str, Named]:
    """Checks A: (rank, in_features) and B: (out_features, rank), or what the variant stores of them."""
    site, rank = module.site, module.rank
    why = f"rank {rank} at {site.name} of this base takes"
    for name, shape in zip(factors_of(site), stored_shapes(site, rank, variant), strict=True):
        factors[name].require_shape(shape, why)
    return factors


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


def _tied_factors(embedding: Mapping[str, Named], saved: Mapping[str, Named]) -> Mapping[str, Named]:
    """The head's factors are the embedding's, transposed; PEFT shares them in memory and saves them twice."""
    tied = {"lora_A": embedding["lora_embedding_B"].transposed(), "lora_B": embedding["lora_embedding_A"].transposed()}
    for name, ours in tied.items():
        theirs = saved.get(name, ours)
        if not torch.equal(ours.tensor, theirs.tensor):
            raise InvalidAdapter(f"{theirs.key} is not the transpose of {ours.key}, which ties it", param="files")
    return {**saved, **tied}
