"""`modules_to_save`: modules of the base that an adapter replaces whole, as PEFT 0.21 finds and saves them."""

import torch

from ..errors import InvalidAdapter, UnsupportedAdapter
from ..primitives import Replacement
from ..sites import Site, SiteKind, SiteTable
from .base import Base, NamedTensor
from .config import AuxiliaryConfig
from .listing import listed
from .tensors import Checkpoint

EMBEDDING_NAMES = ("embed_tokens", "lm_head")  # the only names that PEFT knows to be tied


def saved_modules(config: AuxiliaryConfig, checkpoint: Checkpoint, base: Base) -> dict[str, Replacement]:
    """Compile each site at or below a named module, with all its parameters.

    Raises InvalidAdapter, UnsupportedAdapter.
    """
    names = _sites(config.modules, base)
    pair = _tied_pair(config, base)
    found = {name: _saved(base.table.sites[name], checkpoint, base) for name in names if name not in pair[1:]}
    if pair:
        embedding, head = pair
        found[head] = found[embedding] = _saved(base.table.sites[embedding], checkpoint, base)
        _check_tied(found[head], _copies(checkpoint, head, "weight"), base)
    return found


def replacement(site: Site, weight: NamedTensor, bias: NamedTensor | None, base: Base) -> Replacement:
    """Return a replaced module. Raises InvalidAdapter, UnsupportedAdapter.

    weight: in the layout in which the module stores its own. bias: None keeps the base's.
    """
    weight.require_shape(stored_shape(site), f"the weight of {site.name} in this base takes")
    if base.is_quantised(site.name):
        raise UnsupportedAdapter(
            f"{weight.key} is not supported yet: it replaces a module that is {base.form}", param="modules_to_save"
        )
    if bias is not None:
        bias.require_shape((site.out_features,), f"the bias of {site.name} takes")
    elif (own := lacks_bias(site, base)) is not None:
        raise InvalidAdapter(
            f"{weight.key} has {site.out_features} rows, and the base's {site.name} a bias of {len(own)}: the adapter "
            f"must bring one of {site.out_features}",
            param="files",
        )
    return Replacement(weight.converted(base.dtype), None if bias is None else bias.converted(base.dtype))


def lacks_bias(site: Site, base: Base) -> torch.Tensor | None:
    """Return the base's bias of a head that was trained with more tokens than this has entries for; else None."""
    own = base.parameter(site.name, "bias") if site.kind is SiteKind.HEAD else None
    return own if own is not None and len(own) < site.out_features else None


def stored_shape(site: Site) -> tuple[int, ...]:
    """Return the shape of the module's own weight."""
    if site.kind is SiteKind.NORM:
        return (site.heads, site.out_features) if site.heads else (site.out_features,)
    if site.kind is SiteKind.EMBEDDING or site.transposed:
        return site.in_features, site.out_features
    return site.out_features, site.in_features


def _sites(modules: tuple[str, ...], base: Base) -> list[str]:
    """Return the sites at or below the named modules.

    Raises UnsupportedAdapter for a module that is no site, and for experts.

    PEFT compares ends of names without regard to dots: `norm` takes in `input_layernorm`.
    """
    everything = (*base.table.sites, *base.table.other_modules)
    roots = {name for name in everything if name.endswith(modules)}
    if lost := sorted(name for name in base.table.irregular if roots.intersection(_with_parents(name))):
        raise UnsupportedAdapter(
            f"modules_to_save takes in {listed(lost)}, which this base does not run on every token, or on every token "
            "that it predicts from; another such module is not supported yet",
            param="modules_to_save",
        )
    names = [name for name in base.table.sites if roots.intersection(_with_parents(name))]
    if experts := [name for name in names if base.table.sites[name].kind is SiteKind.EXPERTS]:
        raise UnsupportedAdapter(
            f"modules_to_save takes in {listed(experts)}, a mixture's experts in stacked parameters; whole copies of "
            "those are not supported yet: train them with target_parameters",
            param="modules_to_save",
        )
    return names


def note_on_modules(config: AuxiliaryConfig, table: SiteTable) -> list[str]:
    """Say which of the names match no module of this base: they have no effect, as in PEFT."""
    everything = (*table.sites, *table.other_modules, *table.unread)
    idle = [end for end in config.modules if not any(name.endswith(end) for name in everything)]
    return [f"modules_to_save names what this base does not have, and is ignored there: {listed(idle)}"] if idle else []


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _tied_pair(config: AuxiliaryConfig, base: Base) -> tuple[str, ...]:
    """Return embedding and head, where the configuration names one of them and ties both; else nothing."""
    embedding, head = base.table.tied_head, base.table.head
    named = any(name.rpartition(".")[2] in EMBEDDING_NAMES for name in config.modules)
    return (embedding, head) if config.tie and named and embedding is not None and head is not None else ()


def _saved(site: Site, checkpoint: Checkpoint, base: Base) -> Replacement:
    weight = _parameter(checkpoint, site.name, "weight")
    has_bias = base.model is None or base.parameter(site.name, "bias") is not None
    optional = base.model is None and not _names(checkpoint, site.name, "bias")
    bias = _parameter(checkpoint, site.name, "bias") if has_bias and not optional else None
    return replacement(site, weight, bias, base)


def _check_tied(saved: Replacement, copies: list[NamedTensor], base: Base) -> None:
    """Check that all copies of a tied head's weight are the embedding's. Raises InvalidAdapter."""
    assert saved.weight is not None
    for copy in copies:
        if not torch.equal(copy.converted(base.dtype), saved.weight):
            raise InvalidAdapter(f"{copy.key} is not the weight of the embedding, which ties it", param="files")


def _parameter(checkpoint: Checkpoint, site: str, parameter: str) -> NamedTensor:
    """Take a parameter of a saved module."""
    found = _copies(checkpoint, site, parameter)
    return found[0] if found else checkpoint.take(f"{site}.{parameter}")


def _copies(checkpoint: Checkpoint, site: str, parameter: str) -> list[NamedTensor]:
    """Take all copies of a parameter of a saved module.

    PEFT saves it twice, and the base's once more where the vocabulary was resized or biases are saved.
    """
    checkpoint.find(f"{site}.original_module.{parameter}")
    return [checkpoint.take(name) for name in _names(checkpoint, site, parameter)]


def _names(checkpoint: Checkpoint, site: str, parameter: str) -> list[str]:
    return [n for n in (f"{site}.{parameter}", f"{site}.modules_to_save.{parameter}") if n in checkpoint]
