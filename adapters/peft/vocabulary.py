"""The vocabulary that an adapter was trained with, where the base's was resized for it.

PEFT's manual has the user resize the base before the adapter is loaded. So compilers see the base as resized, and what
they return is fitted to the base as it is:

    fewer tokens   padded by the base's own rows and by zeros; the engine neither reads nor says those tokens
    more tokens    rows that replace the base's whole weight; what else the adapter has at new ones is merged into them
"""

from collections.abc import Iterator
from dataclasses import replace

from ..bypass import Bypass
from ..errors import InvalidAdapter
from ..sites import Site, SiteKind, SiteTable
from .base import Base
from .config import AnyConfig
from .listing import listed
from .tensors import Checkpoint
from .token_rows import has_rows, trained_ids
from .vocabulary_rows import merged, padded, tokens_of

_WEIGHTS = ("weight", "base_layer.weight", "modules_to_save.weight", "original_module.weight")
_BESIDE = "token_adapter."


def as_trained(config: AnyConfig, checkpoint: Checkpoint, base: Base) -> Base:
    """Return the base with as many tokens as the adapter was trained with; the base itself where those are its own.

    Raises InvalidAdapter where tensors disagree.
    """
    own = _own_size(base.table)
    if own is None or base.model is None:
        return base
    found = {name: dict(_sizes(base.table.sites[name], checkpoint)) for name in _pair(base.table)}
    sizes = {size for by_key in found.values() for size in by_key.values()}
    named = {name for name, by_key in found.items() if by_key}
    ids = set(trained_ids(config))
    if not sizes and own < (size := max(ids, default=-1) + 1) <= own + len(ids):
        sizes, named = {size}, {name for name in found if has_rows(checkpoint, name)}
    if not sizes - {own}:
        return base
    if len(sizes) > 1:
        said = [f"{size} at {key}" for by_key in found.values() for key, size in by_key.items()]
        raise InvalidAdapter(f"the adapter has vocabularies of several sizes: {listed(said)}", param="files")
    return _resized(base, named if named and base.table.tied_head is None else set(found), *sizes)


def fitted(bypass: Bypass, trained: Base, base: Base) -> Bypass:
    """Return what was compiled against `trained` for the base as it is. Raises InvalidAdapter, UnsupportedAdapter."""
    if trained is base:
        return bypass
    changed = [name for name in _pair(base.table) if name in trained.resized]
    size, own = (tokens_of(table.sites[changed[0]]) for table in (trained.table, base.table))
    fit = padded if size < own else merged
    sites = {**bypass.sites, **{name: fit(bypass.sites.get(name, ()), name, base, size) for name in changed}}
    if size > own and base.table.embedding not in changed:
        raise InvalidAdapter(
            f"its {base.table.head} says {size} tokens, and no embedding of its own reads as many: save both, as "
            "save_pretrained(..., save_embedding_layers=True) does",
            param="files",
        )
    return replace(
        bypass,
        sites={name: sites[name] for name in base.table.sites if sites.get(name)},
        vocabulary=size,
        predicted=size if size < own or base.table.head in changed else 0,
    )


def _pair(table: SiteTable) -> list[str]:
    """Return the names of the input embedding and the head, as far as they are sites."""
    return [name for name in (table.embedding, table.head) if name is not None and name in table.sites]


def _own_size(table: SiteTable) -> int | None:
    """Return the number of tokens of the base; None where embedding and head differ, or the embedding is no site."""
    sizes = {tokens_of(table.sites[name]) for name in _pair(table)}
    return sizes.pop() if table.embedding in table.sites and len(sizes) == 1 else None


def _sizes(site: Site, checkpoint: Checkpoint) -> Iterator[tuple[str, int]]:
    """Yield the tensors of a site that have a row or a column for each token, with the number of these."""
    weights = (*_WEIGHTS, *(_BESIDE + name for name in _WEIGHTS))
    for name in checkpoint.below(site.name):
        shape = checkpoint.shape(name)
        if len(shape) != 2:
            continue
        factor = name[len(site.name) + 1 :].split(".")[0]
        if name.endswith(tuple(f"{site.name}.{weight}" for weight in weights)):
            yield name, shape[0]
        elif factor == "lora_embedding_A":
            yield name, shape[1]
        elif factor == "lora_B" and site.kind is SiteKind.HEAD:
            yield name, shape[0]


def _resized(base: Base, names: set[str], size: int) -> Base:
    sites, kept, biases = dict(base.table.sites), dict(base.replaced), dict(base.biases)
    for name in names:
        site = sites[name]
        embeds = site.kind is SiteKind.EMBEDDING
        sites[name] = replace(site, in_features=size) if embeds else replace(site, out_features=size)
        if size < tokens_of(site):
            kept[name] = base.weight(name, "a smaller vocabulary", rounded_inputs=True)[:size]
            if not embeds and (bias := base.parameter(name, "bias")) is not None:
                biases[name] = bias[:size]
    own = {name: base.table.sites[name] for name in names}
    return replace(base, table=replace(base.table, sites=sites), replaced=kept, biases=biases, resized=own)
