"""Methods whose delta is a product of two thin matrices that the checkpoint holds in some form."""

import torch

from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter
from ..primitives import LowRank
from ..sites import Site
from .base import Base, NamedTensor
from .config import MethodConfig
from .linears import sites_of
from .patterns import Deadline
from .targets import values_at
from .tensors import Checkpoint

_POLY_EPS = 1e-12  # PEFT's, added to the sum that weights are divided by


def low_rank(key: str, a: torch.Tensor, b: torch.Tensor, base: Base) -> LowRank:
    """Return a low-rank primitive in the base's dtype. Raises AdapterTooLarge, InvalidAdapter.

    key: names it in errors. a: (rank, in_features), b: (out_features, rank) in float32.
    """
    if len(a) > base.max_rank:
        raise AdapterTooLarge(f"{key}: rank {len(a)} is over the server's limit of {base.max_rank}", param="r")
    return LowRank(NamedTensor(key, a).converted(base.dtype), NamedTensor(key, b).converted(base.dtype))


def ranks_of(config: MethodConfig, sites: list[Site], default: int, deadline: Deadline) -> dict[str, int]:
    """Return site to rank: `r`, or what rank_pattern has for it. Raises InvalidAdapter."""
    patterns = config.fields.integer_map("rank_pattern", 1)
    return values_at(
        patterns, config.fields.integer("r", default, 1), [s.name for s in sites], "rank_pattern", deadline
    )


def compile_adalora(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile an ADALORA adapter: y += s · B diag(E) A x, s = lora_alpha / (init_r + 1e-5).

    rank_pattern says which of the init_r directions were kept; only those are in the checkpoint.
    Zhang et al. 2023, arXiv:2303.10512. Raises AdapterError.
    """
    init_r = config.fields.integer("init_r", 12, 1)
    alpha = config.fields.number("lora_alpha", 8)
    scaling = (alpha if alpha > 0 else init_r) / (init_r + 1e-5)
    targeted = sites_of(config, base)
    kept = _kept(config, init_r, {site.name for site in targeted})
    sites = {}
    for site in targeted:
        rank = kept.get(site.name, init_r)
        why = f"rank {rank} at {site.name} takes"
        a = checkpoint.take(f"{site.name}.lora_A").require_shape((rank, site.in_features), why).weights()
        b = checkpoint.take(f"{site.name}.lora_B").require_shape((site.out_features, rank), why).weights()
        e = checkpoint.take(f"{site.name}.lora_E").require_shape((rank, 1), why).weights()
        if rank:
            sites[site.name] = (low_rank(site.name, a * e, scaling * b, base),)
    if not sites:
        raise InvalidAdapter("rank_pattern keeps no direction anywhere: the adapter does nothing", param="rank_pattern")
    return Bypass(config.peft_type, sites)


def _kept(config: MethodConfig, init_r: int, names: set[str]) -> dict[str, int]:
    """Return site to number of kept directions, where rank_pattern has a list of init_r booleans for it.

    names: of the sites. Raises InvalidAdapter.
    """
    pattern = config.fields.value("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise InvalidAdapter("rank_pattern must be an object of lists of booleans", param="rank_pattern")
    kept = {}
    for name, mask in pattern.items():
        if not isinstance(mask, list) or not all(isinstance(one, bool) for one in mask):
            raise InvalidAdapter(f"rank_pattern[{name[:200]!r}] must be a list of booleans", param="rank_pattern")
        site = name.removeprefix("base_model.model.").partition(".lora_")[0]
        if site not in names or len(mask) != init_r:
            raise InvalidAdapter(
                f"rank_pattern[{name[:200]!r}] must name a targeted module and have init_r={init_r} booleans",
                param="rank_pattern",
            )
        kept[site] = sum(mask)
    return kept


def compile_delora(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a DELORA adapter: y += B diag(λ / (r ‖a‖ ‖b‖)) A diag(w_norm) x.

    Bini et al. 2025, arXiv:2503.18225. Raises AdapterError.
    """
    sites = sites_of(config, base)
    ranks = ranks_of(config, sites, 8, base.deadline)
    compiled = {}
    for site in sites:
        rank, why = ranks[site.name], f"rank {ranks[site.name]} at {site.name} takes"
        a = checkpoint.take(f"{site.name}.delora_A").require_shape((rank, site.in_features), why).weights()
        b = checkpoint.take(f"{site.name}.delora_B").require_shape((site.out_features, rank), why).weights()
        strength = checkpoint.take(f"{site.name}.delora_lambda").require_shape((1,), "it takes").weights()
        norm = checkpoint.take(f"{site.name}.delora_w_norm").require_shape((site.in_features,), "it takes").weights()
        scale = strength / rank / (a.norm(dim=1).clamp(min=1e-4) * b.norm(dim=0).clamp(min=1e-4))
        compiled[site.name] = (low_rank(site.name, a * norm, b * scale, base),)
    return Bypass(config.peft_type, compiled)


def compile_gralora(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a GRALORA adapter: k x k blocks, each with a low-rank pair of its own, and a plain pair beside them.

    Served as one pair of rank k·r + hybrid_r, whose factors are zero between blocks.
    Jung et al. 2025, arXiv:2505.20355. Raises AdapterError.
    """
    fields = config.fields
    blocks, rank, hybrid = (
        fields.integer("gralora_k", 2, 1),
        fields.integer("r", 32, 1),
        fields.integer("hybrid_r", 0, 0),
    )
    if rank % blocks:
        raise InvalidAdapter(f"r is {rank}, which is no multiple of gralora_k, {blocks}", param="r")
    scaling = fields.number("alpha", 64) / (rank + hybrid)
    sites = {}
    for site in sites_of(config, base):
        if site.in_features % blocks or site.out_features % blocks:
            raise InvalidAdapter(f"{site.name} does not divide into {blocks} blocks", param="gralora_k")
        a, b = _gralora_pair(site, checkpoint, blocks, rank)
        if hybrid:
            why = f"hybrid_r {hybrid} at {site.name} takes"
            extra = checkpoint.take(f"{site.name}.gralora_A_general.weight")
            a = torch.cat([a, extra.require_shape((hybrid, site.in_features), why).weights()])
            extra = checkpoint.take(f"{site.name}.gralora_B_general.weight")
            b = torch.cat([b, extra.require_shape((site.out_features, hybrid), why).weights()], dim=1)
        sites[site.name] = (low_rank(site.name, a, scaling * b, base),)
    return Bypass(config.peft_type, sites)


def _gralora_pair(site: Site, checkpoint: Checkpoint, k: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the blocks as one pair. a: (k·rank, in_features), b: (out_features, k·rank).

    Rank indices are (output block, input block, direction).
    """
    why = f"{k} blocks of rank {rank} at {site.name} take"
    shape = (k, site.in_features // k, rank)
    blocks_a = checkpoint.take(f"{site.name}.gralora_A").require_shape(shape, why).weights()
    shape = (k, rank, site.out_features // k)
    blocks_b = checkpoint.take(f"{site.name}.gralora_B").require_shape(shape, why).weights()
    parts = blocks_a.unflatten(2, (k, rank // k)).permute(2, 0, 3, 1)  # (output block, input block, direction, feature)
    a = torch.stack([torch.block_diag(*part) for part in parts]).flatten(0, 1)
    return a, torch.block_diag(*blocks_b.transpose(1, 2))


def compile_poly(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a POLY adapter for `base.task`: LoRA skills mixed by weights that the task has learned.

    Ponti et al. 2022, arXiv:2202.13914. Raises AdapterError; InvalidAdapter if there is no such task.
    """
    fields = config.fields
    tasks, skills, splits = (fields.integer(n, d, 1) for n, d in (("n_tasks", 1), ("n_skills", 4), ("n_splits", 1)))
    rank = fields.integer("r", 8, 1)
    if base.task >= tasks:
        raise InvalidAdapter(f"task_id must be below {tasks}, the number of the adapter's tasks", param="task_id")
    sites = {}
    for site in sites_of(config, base):
        if site.in_features % splits or site.out_features % splits:
            raise InvalidAdapter(f"{site.name} does not divide into {splits} splits", param="n_splits")
        stem, why = site.name, f"{tasks} tasks, {skills} skills, {splits} splits and rank {rank} at {site.name} take"
        logits = checkpoint.take(f"{stem}.poly_router.module_logits").require_shape((tasks, splits * skills), why)
        shape = (splits, skills, site.in_features // splits, rank)
        a = checkpoint.take(f"{stem}.poly_lora_A").require_shape(shape, why).weights()
        shape = (splits, skills, rank, site.out_features // splits)
        b = checkpoint.take(f"{stem}.poly_lora_B").require_shape(shape, why).weights()
        weights = logits.weights()[base.task].view(splits, skills).sigmoid()
        weights = weights / (weights.sum(-1, keepdim=True) + _POLY_EPS)
        mixed_a = torch.einsum("qs,qsdr->qdr", weights, a).reshape(site.in_features, rank)
        mixed_b = torch.einsum("qs,qsrd->rqd", weights, b).reshape(rank, site.out_features)
        sites[site.name] = (low_rank(site.name, mixed_a.T, mixed_b.T / rank, base),)
    return Bypass(config.peft_type, sites, num_tasks=tasks)
