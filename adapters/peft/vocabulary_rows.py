"""Primitives at an embedding or a head, from the number of tokens that an adapter has to that of the base.

padded   fewer tokens: the base's own rows behind, and nothing that is added to them
merged   more tokens: rows in place of the base's weight, with all that the adapter adds to new ones merged in
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from ..errors import InvalidAdapter, UnsupportedAdapter
from ..primitives import (
    Bias,
    InputRotation,
    InputScale,
    LowRank,
    OutputScale,
    Primitive,
    Replacement,
    TokenRows,
)
from ..sites import Site, SiteKind
from .base import Base
from .listing import listed

Primitives = tuple[Primitive, ...]


def tokens_of(site: Site) -> int:
    """Return how many tokens an embedding or a head knows."""
    return site.in_features if site.kind is SiteKind.EMBEDDING else site.out_features


def padded(primitives: Primitives, name: str, base: Base, size: int) -> Primitives:
    """Return the primitives of `size` tokens for a base of more. Raises UnsupportedAdapter."""
    site = base.table.sites[name]
    _require_known(primitives, name)
    return tuple(_PAD[type(primitive)](primitive, site, base, size) for primitive in primitives)


def merged(primitives: Primitives, name: str, base: Base, size: int) -> Primitives:
    """Return the primitives of `size` tokens for a base of fewer. Raises InvalidAdapter, UnsupportedAdapter."""
    site = base.table.sites[name]
    _require_known(primitives, name)
    whole = _whole_weight(primitives, site, base, size)
    others = [p for p in primitives if not isinstance(p, Replacement | TokenRows)]
    if not others:
        return (whole,)
    return (_merged_at_embedding if site.kind is SiteKind.EMBEDDING else _merged_at_head)(whole, others, site)


def _pad_replacement(primitive: Replacement, site: Site, base: Base, size: int) -> Primitive:
    weight, bias = primitive.weight, primitive.bias
    if weight is not None:
        own = base.weight(site.name, "a smaller vocabulary")
        weight = torch.cat([weight, own[size:].to("cpu", weight.dtype)])
    own_bias = base.parameter(site.name, "bias")
    if bias is not None and own_bias is not None and site.kind is SiteKind.HEAD:
        bias = torch.cat([bias, own_bias[size:].to("cpu", bias.dtype)])
    return Replacement(weight, bias)


def _pad_low_rank(primitive: LowRank, site: Site, _: Base, size: int) -> Primitive:
    more = tokens_of(site) - size
    if site.kind is SiteKind.EMBEDDING:
        return LowRank(F.pad(primitive.a, (0, more)), primitive.b)
    return LowRank(primitive.a, F.pad(primitive.b, (0, 0, 0, more)))


def _pad_vector(primitive: OutputScale | Bias, site: Site, _: Base, size: int) -> Primitive:
    if site.kind is SiteKind.EMBEDDING:
        return primitive
    return replace(primitive, d=F.pad(primitive.d, (0, tokens_of(site) - size)))


def _as_it_is(primitive: Primitive, _: Site, __: Base, ___: int) -> Primitive:
    return primitive


_PAD: Mapping[type[Primitive], Callable[..., Primitive]] = {
    Replacement: _pad_replacement,
    LowRank: _pad_low_rank,
    OutputScale: _pad_vector,
    Bias: _pad_vector,
    TokenRows: _as_it_is,
    InputScale: _as_it_is,
    InputRotation: _as_it_is,
}


def _require_known(primitives: Primitives, name: str) -> None:
    for primitive in primitives:
        if type(primitive) not in _PAD:
            raise UnsupportedAdapter(
                f"an adapter with a {primitive.kind.replace('_', ' ')} at {name} is not supported yet where its "
                "vocabulary is not as large as the base's; train with LoRA, modules_to_save or "
                "trainable_token_indices there",
                param="target_modules",
            )


def _whole_weight(primitives: Primitives, site: Site, base: Base, size: int) -> Replacement:
    """Return the weight with all tokens. Raises InvalidAdapter where rows of new ones are missing."""
    found = next((p for p in primitives if isinstance(p, Replacement) and p.weight is not None), None)
    if found is not None:
        return found
    own = tokens_of(site)
    rows = next((p for p in primitives if isinstance(p, TokenRows)), None)
    known = set() if rows is None else set(rows.ids.tolist())
    missing = [str(token) for token in range(own, size) if token not in known]
    if rows is None or missing:
        raise InvalidAdapter(
            f"the adapter has {size} tokens, {size - own} more than the base, but at {site.name} it lacks the rows of "
            f"{listed(missing)}: save them, as save_pretrained(..., save_embedding_layers=True) does",
            param="files",
        )
    weight = F.pad(base.weight(site.name, "a larger vocabulary").to("cpu", base.dtype), (0, 0, 0, size - own))
    values = rows.values if site.kind is SiteKind.HEAD else rows.values.float() / site.embed_scale
    unbiased = site.kind is SiteKind.EMBEDDING or base.parameter(site.name, "bias") is None
    bias = None if unbiased else torch.zeros(size, dtype=base.dtype)  # PEFT leaves it out of a head with rows
    return Replacement(weight.index_copy(0, rows.ids.long(), values.to(base.dtype)), bias)


def _merged_at_embedding(whole: Replacement, others: Sequence[Primitive], site: Site) -> Primitives:
    """Merge what factors add to new tokens. An output's scale, and a bias, are the same for all tokens."""
    assert whole.weight is not None
    own = site.in_features
    new = whole.weight[own:].to(torch.float32, copy=True)
    factor = site.embed_scale * _product(1 + p.d.float() for p in others if isinstance(p, OutputScale))
    for p in others:
        if isinstance(p, LowRank):
            new += (p.b.float() @ p.a[:, own:].float()).T / factor
    cut = (LowRank(p.a[:, :own].contiguous(), p.b) if isinstance(p, LowRank) else p for p in others)
    return Replacement(_joined(whole.weight[:own], new), whole.bias), *cut


def _merged_at_head(whole: Replacement, others: Sequence[Primitive], site: Site) -> Primitives:
    """Merge the rows, and the entries of a bias, that say new tokens."""
    assert whole.weight is not None
    own = site.out_features
    new = whole.weight[own:].to(torch.float32, copy=True)
    bias = torch.zeros(len(whole.weight)) if whole.bias is None else whole.bias.to(torch.float32, copy=True)
    factor = _product(1 + p.d[own:].float() for p in others if isinstance(p, OutputScale))
    new, bias[own:] = new * factor.expand(len(new))[:, None], bias[own:] * factor
    for p in others:
        if isinstance(p, LowRank):
            new += p.b[own:].float() @ p.a.float()
        elif isinstance(p, Bias):
            bias[own:] += p.d[own:].float()
    unbiased = whole.bias is None and not bias.any()
    together = Replacement(_joined(whole.weight[:own], new), None if unbiased else bias.to(whole.weight.dtype))
    return together, *(_cut_at_head(p, own) for p in others)


def _cut_at_head(primitive: Primitive, own: int) -> Primitive:
    if isinstance(primitive, LowRank):
        return LowRank(primitive.a, primitive.b[:own].contiguous())
    if isinstance(primitive, OutputScale | Bias):
        return replace(primitive, d=primitive.d[:own].contiguous())
    return primitive


def _joined(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return torch.cat([old, new.to(old.dtype)])


def _product(factors: Iterator[torch.Tensor]) -> torch.Tensor:
    result = torch.ones(())
    for factor in factors:
        result = result * factor
    return result
