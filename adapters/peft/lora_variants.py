"""The primitives of one module's LoRA, in every variant that PEFT has. `variant` says what a variant is.

lora_bias      y += s (B (A x) + bias)
BD-LoRA        A or B has blocks on its diagonal, and is stored without the zeros beside them
QALoRA         A x = A' (means of x in groups) · (number of groups): A' repeated is A
KaSA           y += s B (diag ⊙ A x), and see `residual`
"""

from collections.abc import Mapping

import torch

from ..errors import InvalidAdapter
from ..primitives import Bias, LowRank, Primitive
from ..sites import Site, SiteKind
from .base import Base, NamedTensor
from .dora import dora
from .keys import factors_of
from .residual import without_initial_factors
from .variant import LoraVariant


def extra_factors(site: Site, variant: LoraVariant) -> tuple[str, ...]:
    """Return the names of the tensors beside A and B.

    Raises InvalidAdapter for a variant that PEFT does not have for embeddings.
    """
    if variant.linear_only and site.kind is SiteKind.EMBEDDING:
        raise InvalidAdapter(f"PEFT has this form of LoRA for linear layers, not for {site.name}", param="files")
    wanted = {"lora_B.bias": variant.bias, "lora_magnitude_vector": variant.dora, "lora_diag": variant.kasa}
    return tuple(name for name, there in wanted.items() if there)


def stored_shapes(site: Site, rank: int, variant: LoraVariant) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of A and B in the checkpoint. Raises InvalidAdapter if they cannot be divided."""
    blocks, factor = _blocks(site, variant)
    a_columns = _divided(site.in_features, (blocks if factor == "a" else 1) * (variant.pool or 1), site)
    b_columns = _divided(rank, blocks if factor == "b" else 1, site)
    _divided({"a": rank, "b": site.out_features}.get(factor, blocks), blocks, site)
    return (rank, a_columns), (site.out_features, b_columns)


def primitives_of(
    site: Site, factors: Mapping[str, NamedTensor], scaling: float, variant: LoraVariant, base: Base
) -> tuple[Primitive, ...]:
    """Return the primitives of one module. factors: of the stored shapes, by name. Raises AdapterError."""
    a, b = (factors[name] for name in factors_of(site))
    a, b = _expanded(site, a, b, variant)
    start = "kasa" if variant.kasa else variant.start
    embeds = site.kind is SiteKind.EMBEDDING
    if not variant.dora and (not start or embeds):
        scale = scaling * (site.embed_scale if embeds else 1.0)
        low_rank = LowRank(a.converted(base.dtype), b.converted(base.dtype, scale))
        return (low_rank, *_bias(site, factors, scaling, base))
    b = b._replace(tensor=b.tensor.float() * scaling)
    if variant.kasa:
        diagonal = factors["lora_diag"].require_shape((a.tensor.shape[0],), f"the diagonal of {site.name} takes")
        b = b._replace(tensor=b.tensor * diagonal.tensor.float())
    if start and not embeds:
        a, b = without_initial_factors(start, site, a, b, scaling, base)
    if variant.dora:
        return dora(site, a, b, factors["lora_magnitude_vector"], base)
    return (LowRank(a.converted(base.dtype), b.converted(base.dtype)),)


def _bias(site: Site, factors: Mapping[str, NamedTensor], scaling: float, base: Base) -> tuple[Bias, ...]:
    if "lora_B.bias" not in factors:
        return ()
    bias = factors["lora_B.bias"].require_shape((site.out_features,), f"the bias of {site.name} takes")
    return (Bias(bias.converted(base.dtype, scaling)),)


def _expanded(site: Site, a: NamedTensor, b: NamedTensor, variant: LoraVariant) -> tuple[NamedTensor, NamedTensor]:
    blocks, factor = _blocks(site, variant)
    if factor == "a":
        a = a._replace(tensor=_block_diagonal(a.tensor, blocks))
    if factor == "b":
        b = b._replace(tensor=_block_diagonal(b.tensor, blocks))
    if variant.pool:
        weight = a.tensor.shape[1] / variant.pool  # a mean over a group, times the number of groups
        a = a._replace(tensor=a.tensor.float().repeat_interleave(variant.pool, dim=1) * weight)
    return a, b


def _blocks(site: Site, variant: LoraVariant) -> tuple[int, str]:
    return (1, "") if variant.blocks is None else (variant.blocks.blocks, variant.blocks.factor(site.name))


def _block_diagonal(stored: torch.Tensor, blocks: int) -> torch.Tensor:
    diagonal: torch.Tensor = torch.block_diag(*stored.chunk(blocks))
    return diagonal


def _divided(size: int, parts: int, site: Site) -> int:
    if size % parts:
        raise InvalidAdapter(f"{size} at {site.name} cannot be divided by {parts}", param="files")
    return size // parts
