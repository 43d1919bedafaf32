"""What an adapter of any method may bring beside its own tensors: modules saved whole, copies of the embedding, biases.

    modules_to_save                 the module with the saved parameters        Replacement
    a full embedding or head        the base's own, or what takes its place     Replacement
    bias="all", bias="..._only"     y += saved bias - base's                    Bias, or Replacement of a norm's
    trainable_token_indices         see `token_rows`                            TokenRows

PEFT saves these as `<module>.weight`, or `<module>.base_layer.weight` where a method wraps the module.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from ..bypass import Bypass
from ..errors import InvalidAdapter, UnsupportedAdapter
from ..primitives import Bias, Primitive, Replacement, TokenRows
from ..sites import Site, SiteKind
from .base import Base, NamedTensor, is_same
from .config import AuxiliaryConfig
from .saved_modules import replacement, saved_modules
from .tensors import Checkpoint
from .token_rows import replaced_rows

_COPIES = ("base_layer.weight", "weight", "token_adapter.base_layer.weight", "original_module.weight")
_BIASES = ("base_layer.bias", "bias")
_SCALE_BIASES = ("GLORA",)


@dataclass(frozen=True)
class Auxiliary:
    """By site. saved: modules with all their parameters. copies: embeddings and heads that differ from the base's.

    rows: of embeddings and heads. biases: what is added, or the bias of a norm.
    """

    saved: Mapping[str, Replacement]
    copies: Mapping[str, Replacement]
    rows: Mapping[str, TokenRows]
    biases: Mapping[str, Primitive]

    def seen_by_method(self, base: Base) -> Base:
        """The base with the copies in place, which is what PEFT computes with."""
        weights = {name: copy.weight for name, copy in self.copies.items() if copy.weight is not None}
        return replace(base, replaced=weights)

    def joined(self, bypass: Bypass, base: Base) -> Bypass:
        """The bypass with these. Raises InvalidAdapter, UnsupportedAdapter for what does not go together."""
        if not (self.saved or self.copies or self.rows or self.biases):
            return bypass
        if bypass.invocation:
            raise UnsupportedAdapter(
                "alora_invocation_tokens is not supported yet beside trained modules, biases or tokens of the base: "
                "those work before the invocation too; train without them",
                param="alora_invocation_tokens",
            )
        own, method = bypass.sites, bypass.method
        if method in _SCALE_BIASES and self.biases.keys() & own.keys():
            raise UnsupportedAdapter(
                f"bias is not supported yet with {method}, which multiplies the base's; train with bias='none'",
                param="bias",
            )
        sites = {name: self._at(site, own.get(name, ()), method) for name, site in base.table.sites.items()}
        served = {name: primitives for name, primitives in sites.items() if primitives}
        return replace(bypass, sites=served)

    def _at(self, site: Site, own: tuple[Primitive, ...], method: str) -> tuple[Primitive, ...]:
        name = site.name
        if own and (name in self.saved or name in self.rows):
            raise InvalidAdapter(f"{name} is both adapted and replaced, which PEFT does not do", param="files")
        if name in self.copies:
            _check_copied(site, self.copies[name], own, method)
        whole = self.saved.get(name) or self.copies.get(name)
        replaced = _with_rows(site, whole, self.rows.get(name))
        parts = (*(() if replaced is None else (replaced,)), *own)
        return (*parts, self.biases[name]) if name in self.biases else parts


def compile_auxiliary(config: AuxiliaryConfig, checkpoint: Checkpoint, base: Base) -> Auxiliary:
    """Takes its tensors, and only those. Raises AdapterError."""
    saved = saved_modules(config, checkpoint, base)
    copies = dict(_copies(checkpoint, base, saved))
    _tie(copies, checkpoint, base)
    rows = replaced_rows(config, checkpoint, base, copies)
    if both := sorted(rows.keys() & saved.keys()):
        raise InvalidAdapter(
            f"{', '.join(both)}: modules_to_save and trainable_token_indices do not go together there",
            param="trainable_token_indices",
        )
    return Auxiliary(saved, copies, rows, dict(_biases(config, checkpoint, base, saved, copies)))


def _copies(checkpoint: Checkpoint, base: Base, saved: Mapping[str, Replacement]) -> Iterator[tuple[str, Replacement]]:
    """PEFT saves embedding and head in full when an adapter is on one of them, and when the vocabulary was resized."""
    for site in base.table.sites.values():
        if (site.kind is not SiteKind.EMBEDDING and site.name != base.table.head) or site.name in saved:
            continue
        for suffix in _COPIES:
            copy = checkpoint.find(f"{site.name}.{suffix}")
            if copy is not None and not is_same(base, site.name, copy):
                yield site.name, replacement(site, copy, _longer_bias(site, copy, checkpoint, base), base)


def _longer_bias(site: Site, copy: NamedTensor, checkpoint: Checkpoint, base: Base) -> NamedTensor | None:
    """Of a head with more rows than the base's, if the base's has one."""
    longer = site.kind is SiteKind.HEAD and copy.tensor.dim() == 2 and len(copy.tensor) > site.out_features
    if not longer or base.parameter(site.name, "bias") is None:
        return None
    found = next((suffix for suffix in _BIASES if f"{site.name}.{suffix}" in checkpoint), _BIASES[-1])
    return checkpoint.take(f"{site.name}.{found}")


def _tie(copies: dict[str, Replacement], checkpoint: Checkpoint, base: Base) -> None:
    """A tied pair is one parameter, which PEFT loads a copy into. Raises InvalidAdapter if two copies differ."""
    pair = [name for name in (base.table.tied_head, base.table.head) if base.table.tied_head and name is not None]
    found = [copies[name] for name in pair if name in copies]
    weights = [copy.weight for copy in found if copy.weight is not None]
    if not all(torch.equal(weight, weights[0]) for weight in weights):
        raise InvalidAdapter(f"the base ties {' and '.join(pair)}, but their copies differ", param="files")
    for name in pair if found else ():
        copies[name] = copies.get(name) or _tied(base.table.sites[name], found[0], checkpoint, base)


def _tied(site: Site, other: Replacement, checkpoint: Checkpoint, base: Base) -> Replacement:
    """Of one of the pair, what the checkpoint has of the other only."""
    assert other.weight is not None
    weight = NamedTensor(f"the weight of {site.name}", other.weight)
    return replacement(site, weight, _longer_bias(site, weight, checkpoint, base), base)


def _check_copied(site: Site, copy: Replacement, own: tuple[Primitive, ...], method: str) -> None:
    """Methods other than LoRA work out what they need of the base's weight before PEFT loads the copy."""
    vocabulary = site.in_features if site.kind is SiteKind.EMBEDDING else site.out_features
    resized = copy.weight is not None and copy.weight.shape[0] != vocabulary
    if own and (resized or method != "LORA"):
        raise UnsupportedAdapter(
            f"an adapter on {site.name} beside another weight of it is not supported yet, unless it is a LoRA over the "
            "same vocabulary; train with modules_to_save or trainable_token_indices",
            param="files",
        )


def _with_rows(site: Site, whole: Replacement | None, rows: TokenRows | None) -> Replacement | TokenRows | None:
    """In one, as both take the place of the module's output. Its weight does not hold what an embedding scales by."""
    if whole is None or whole.weight is None or rows is None:
        return whole if rows is None else rows
    values = rows.values if site.kind is SiteKind.HEAD else (rows.values.float() / site.embed_scale)
    return Replacement(whole.weight.index_copy(0, rows.ids.long(), values.to(whole.weight.dtype)), whole.bias)


def _biases(
    config: AuxiliaryConfig,
    checkpoint: Checkpoint,
    base: Base,
    saved: Mapping[str, Replacement],
    copies: Mapping[str, Replacement],
) -> Iterator[tuple[str, Primitive]]:
    touched = _parents(checkpoint) if config.bias not in ("all", "none") else set()
    for site in base.table.sites.values():
        wanted = config.bias == "all" or site.name in touched
        copy = copies.get(site.name)
        if site.name in saved or not (wanted or site.name == base.table.head) or (copy and copy.bias is not None):
            continue
        own = base.parameter(site.name, "bias")
        if own is None:
            continue
        found = next((suffix for suffix in _BIASES if f"{site.name}.{suffix}" in checkpoint), None)
        if found is None and not wanted:
            continue
        bias = checkpoint.take(f"{site.name}.{found or 'bias'}")
        bias.require_shape(tuple(own.shape), f"the bias of {site.name} takes")
        if site.kind is SiteKind.NORM:
            yield site.name, Replacement(bias=bias.converted(base.dtype))
        elif not torch.equal(bias.tensor.float(), own.float().cpu()):
            change = bias._replace(tensor=bias.tensor.float() - own.float().cpu())
            yield site.name, Bias(change.converted(base.dtype))


def _parents(checkpoint: Checkpoint) -> set[str]:
    """Names of all modules at or above a tensor."""
    parents = set()
    for name in checkpoint:
        while "." in name:
            name = name.rpartition(".")[0]
            parents.add(name)
    return parents
