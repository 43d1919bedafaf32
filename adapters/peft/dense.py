"""HiRA (Huang et al. 2025, "HiRA"), whose delta has full rank: y += (W ⊙ B A) x, a Dense."""

import torch

from ..bypass import Bypass
from ..primitives import Dense, Primitive
from ..sites import Site, SiteKind
from .base import Base, NamedTensor
from .config import MethodConfig
from .linears import MATRICES, require_room, sites_of
from .saved_modules import replacement
from .tensors import Checkpoint


def compile_hira(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a HIRA adapter.

    Reads hira_A: (r, in_features); hira_B: (out_features, r); at an embedding hira_embedding_A, hira_embedding_B.
    Raises InvalidAdapter, UnsupportedAdapter, AdapterTooLarge.
    """
    sites = sites_of(config, base, MATRICES)
    require_room(sites, base)
    rank = config.fields.integer("r", 32, 1)  # PEFT reads rank_pattern and ignores it
    return Bypass(config.peft_type, {site.name: (_hira(rank, site, checkpoint, base),) for site in sites})


def _hira(rank: int, site: Site, checkpoint: Checkpoint, base: Base) -> Primitive:
    at_embedding = site.kind is SiteKind.EMBEDDING
    stem, why = f"{site.name}.hira_{'embedding_' if at_embedding else ''}", f"rank {rank} at {site.name} takes"
    a = checkpoint.take(f"{stem}A").require_shape((rank, site.in_features), why)
    b = checkpoint.take(f"{stem}B").require_shape((site.out_features, rank), why)
    factor = b.converted(torch.float32) @ a.converted(torch.float32)
    if at_embedding:
        return _multiplied_rows(site, NamedTensor(b.key, factor.T), base)
    return Dense(NamedTensor(b.key, base.matrix(site.name, "HiRA") * factor).converted(base.dtype))


def _multiplied_rows(site: Site, factor: NamedTensor, base: Base) -> Primitive:
    """Return the embedding with HiRA's factor in its weight. PEFT adds rows that Gemma's embedding does not scale."""
    own = base.weight(site.name, "HiRA").to("cpu", torch.float32)
    return replacement(site, NamedTensor(factor.key, own + own * factor.tensor / site.embed_scale), None, base)
