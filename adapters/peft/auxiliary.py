"""Tensors that an adapter of any method may have beside its own: whole modules, copies of the embedding, biases.

    modules_to_save                 the module with the saved parameters        Replacement
    a full embedding or head        the base's own, or a replacement of it      Replacement
    bias="all", bias="..._only"     y += saved bias - base's                    Bias, or Replacement of a norm's
    trainable_token_indices         see `token_rows`                            TokenRows

PEFT saves these as `<module>.weight`, or `<module>.base_layer.weight` where a method wraps the module.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from ..bypass import Bypass
from ..errors import InvalidAdapter, UnsupportedAdapter
from ..primitives import Bias, LowRank, Primitive, Replacement, TokenRows
from ..sites import Site, SiteKind
from .base import Base, NamedTensor, is_same
from .config import AuxiliaryConfig
from .listing import listed
from .saved_modules import lacks_bias, replacement, saved_modules
from .tensors import Checkpoint
from .token_rows import replaced_rows

_COPIES = ("base_layer.weight", "weight", "token_adapter.base_layer.weight", "original_module.weight")
_BIASES = ("base_layer.bias", "bias", "token_adapter.base_layer.bias")
_SCALE_BIASES = ("GLORA",)
_PLAIN = (LowRank, Bias)  # they add to a module's output, whatever its weight is


@dataclass(frozen=True)
class Auxiliary:
    """The primitives beside the method's own, by site.

    saved: modules with all their parameters. copies: embeddings and heads that differ from the base's.
    rows: of embeddings and heads. biases: terms to add, or the bias of a norm.
    """

    saved: Mapping[str, Replacement]
    copies: Mapping[str, Replacement]
    rows: Mapping[str, TokenRows]
    biases: Mapping[str, Primitive]

    def seen_by_method(self, base: Base) -> Base:
        """Return the base with the copies in place, with which PEFT computes."""
        weights = {name: copy.weight for name, copy in self.copies.items() if copy.weight is not None}
        biases = {name: copy.bias for name, copy in self.copies.items() if copy.bias is not None}
        return replace(base, replaced={**base.replaced, **weights}, biases={**base.biases, **biases})

    def joined(self, bypass: Bypass, base: Base) -> Bypass:
        """Return the method's bypass together with these primitives.

        Raises InvalidAdapter, UnsupportedAdapter for combinations that PEFT does not make or that are not served.
        """
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
        sites = {name: self._at(site, own.get(name, ()), method, base) for name, site in base.table.sites.items()}
        served = {name: primitives for name, primitives in sites.items() if primitives}
        return replace(bypass, sites=served)

    def _at(self, site: Site, own: tuple[Primitive, ...], method: str, base: Base) -> tuple[Primitive, ...]:
        name = site.name
        if own and (name in self.saved or (name in self.rows and not self._ties(name, base))):
            raise InvalidAdapter(f"{name} is both adapted and replaced, which PEFT does not do", param="files")
        if own and name in self.rows and not (method == "LORA" and all(type(p) in _PLAIN for p in own)):
            raise UnsupportedAdapter(
                f"trained tokens that are tied to {name} are not supported yet beside anything but a plain LoRA there; "
                "train with it left out of target_modules",
                param="trainable_token_indices",
            )
        trained = next((p for p in own if isinstance(p, TokenRows)), None)  # a method by itself
        own = tuple(p for p in own if p is not trained)
        if own and name in self.copies and method != "LORA":
            raise _another_weight(name)
        whole = self.saved.get(name) or self.copies.get(name)
        replaced = _with_rows(site, whole, self.rows.get(name) or trained, base)
        parts = (*(() if replaced is None else (replaced,)), *own)
        return (*parts, self.biases[name]) if name in self.biases else parts

    def _ties(self, name: str, base: Base) -> bool:
        """Return whether the rows of a module are those of the embedding, which PEFT puts below an adapter on it."""
        return name == base.table.head and base.table.tied_head in self.rows


def compile_auxiliary(config: AuxiliaryConfig, checkpoint: Checkpoint, base: Base) -> Auxiliary:
    """Take these tensors from the checkpoint, and only these, and compile them. Raises AdapterError."""
    saved = saved_modules(config, checkpoint, base)
    copies = dict(_copies(checkpoint, base, saved))
    _tie(copies, checkpoint, base)
    rows = replaced_rows(config, checkpoint, base)
    if both := sorted(rows.keys() & saved.keys()):
        raise InvalidAdapter(
            f"{', '.join(both)}: modules_to_save and trainable_token_indices do not go together there",
            param="trainable_token_indices",
        )
    return Auxiliary(saved, copies, rows, dict(_biases(config, checkpoint, base, saved, copies)))


def _copies(checkpoint: Checkpoint, base: Base, saved: Mapping[str, Replacement]) -> Iterator[tuple[str, Replacement]]:
    """Find full copies of embedding and head that differ from the base's.

    PEFT saves them when an adapter is on one of them, and when the vocabulary was resized.
    """
    for site in base.table.sites.values():
        if (site.kind is not SiteKind.EMBEDDING and site.name != base.table.head) or site.name in saved:
            continue
        for suffix in _COPIES:
            copy = checkpoint.find(f"{site.name}.{suffix}")
            if copy is not None and not is_same(base, site.name, copy):
                yield site.name, replacement(site, copy, _longer_bias(site, checkpoint, base), base)


def _longer_bias(site: Site, checkpoint: Checkpoint, base: Base) -> NamedTensor | None:
    """Take the bias of a head that has more rows than the base's; None where the base's has no bias."""
    if lacks_bias(site, base) is None:
        return None
    found = next((suffix for suffix in _BIASES if f"{site.name}.{suffix}" in checkpoint), "bias")
    return checkpoint.take(f"{site.name}.{found}")


def _tie(copies: dict[str, Replacement], checkpoint: Checkpoint, base: Base) -> None:
    """Give both modules of a tied pair the one copy, in place: PEFT loads it into the parameter that they share.

    Raises InvalidAdapter if the checkpoint has two copies that differ.
    """
    pair = [name for name in (base.table.tied_head, base.table.head) if base.table.tied_head and name is not None]
    found = [copies[name] for name in pair if name in copies]
    weights = [copy.weight for copy in found if copy.weight is not None]
    if not all(torch.equal(weight, weights[0]) for weight in weights):
        raise InvalidAdapter(f"the base ties {' and '.join(pair)}, but their copies differ", param="files")
    for name in pair if found else ():
        copies[name] = copies.get(name) or _tied(base.table.sites[name], found[0], checkpoint, base)


def _tied(site: Site, other: Replacement, checkpoint: Checkpoint, base: Base) -> Replacement:
    """Return the replacement of one module of a tied pair by the other's copy."""
    assert other.weight is not None
    weight = NamedTensor(f"the weight of {site.name}", other.weight)
    return replacement(site, weight, _longer_bias(site, checkpoint, base), base)


def _another_weight(name: str) -> UnsupportedAdapter:
    """Return the refusal of a method that derives what it needs from the base's weight before PEFT loads the copy."""
    return UnsupportedAdapter(
        f"an adapter on {name} beside another weight of it is not supported yet, unless it is a LoRA; train with "
        "modules_to_save or trainable_token_indices",
        param="files",
    )


def _with_rows(
    site: Site, whole: Replacement | None, rows: TokenRows | None, base: Base
) -> Replacement | TokenRows | None:
    """Join a replaced module and replaced rows of it, since both replace the module's output.

    A replaced weight is stored before an embedding's scale, and rows after it. A head with rows has no bias in PEFT.
    """
    if rows is None:
        return whole
    biased = site.kind is SiteKind.HEAD and base.parameter(site.name, "bias") is not None
    if biased and whole is None and int(rows.ids[-1]) < (own := base.weight(site.name, "trained tokens")).shape[0]:
        whole = Replacement(own.to("cpu", base.dtype))
    if whole is None or whole.weight is None:
        return rows
    values = rows.values if site.kind is SiteKind.HEAD else (rows.values.float() / site.embed_scale)
    bias = torch.zeros(site.out_features, dtype=base.dtype) if biased else whole.bias
    return Replacement(whole.weight.index_copy(0, rows.ids.long(), values.to(whole.weight.dtype)), bias)


def _refuse_biases_beside(checkpoint: Checkpoint, base: Base) -> None:
    """Raise UnsupportedAdapter for biases of modules that are no sites, as a mixer's convolution is none."""
    beside = {name.removesuffix(".bias").removesuffix(".base_layer") for name in checkpoint if name.endswith(".bias")}
    if beside := beside & base.table.other_modules:
        raise UnsupportedAdapter(
            f"bias='all' takes in those of {listed(sorted(beside))}, which this base adds in a computation of its own; "
            "a change of them is not supported yet: train with bias='none' or 'lora_only'",
            param="bias",
        )


def _biases(
    config: AuxiliaryConfig,
    checkpoint: Checkpoint,
    base: Base,
    saved: Mapping[str, Replacement],
    copies: Mapping[str, Replacement],
) -> Iterator[tuple[str, Primitive]]:
    if config.bias == "all":
        _refuse_biases_beside(checkpoint, base)
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
    """Return the names of all modules at or above a tensor."""
    parents = set()
    for name in checkpoint:
        while "." in name:
            name = name.rpartition(".")[0]
            parents.add(name)
    return parents
