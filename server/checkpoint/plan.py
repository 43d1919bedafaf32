"""What a merge writes: which tensors change, in which order, under which names, and what the configuration says.

Decided before anything is written, from shapes alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from peftserve.adapters.peft.listing import listed
from peftserve.adapters.primitives import Bias, ExpertLowRank, Primitive, Replacement
from peftserve.adapters.sites import Site, SiteKind

from .bases import MergeBase
from .biases import fields_for_biases
from .errors import MergeRefused
from .folding import Share
from .layout import Unit
from .shards import Entry

Shares = Mapping[str, Sequence[Share]]


@dataclass(frozen=True)
class Work:
    """Units that are folded and written together, because modules have tensors in several of them.

    sites: modules that adapters change. entries: by unit, what of it is written.
    """

    units: tuple[Unit, ...]
    sites: tuple[str, ...]
    entries: tuple[Sequence[Entry], ...]


@dataclass(frozen=True)
class Plan:
    """All that is written. fields: of the configuration, where it changes. copies: of tensors that become their own.

    copies: from such a tensor to the one that it was. zeros: biases that the base does not have.
    """

    works: Sequence[Work]
    fields: Mapping[str, Any]
    copies: Mapping[str, str]
    zeros: frozenset[str]


def make_plan(base: MergeBase, shares: Shares, dtype: torch.dtype | None, trust_remote_code: bool) -> Plan:
    """Plan a merge. dtype: to be written; None for that of each tensor. Raises MergeRefused."""
    biases, fields = fields_for_biases(base, _new_biases(base, shares), trust_remote_code)
    copies = {name: other for name, other in base.aliases.items() if _touches(shares, name) or _touches(shares, other)}
    size = _vocabulary(base, shares)
    if size is not None:
        fields |= {"vocab_size": size}
    if copies:
        fields |= {"tie_word_embeddings": False}
    units = [*base.units, *(Unit((), (name,)) for name in (*copies, *biases))]
    planner = _Planner(base, shares, dtype, copies, size)
    works = [planner.work(group, sites) for group, sites in _groups(base, units, shares)]
    return Plan(works, fields, copies, frozenset(biases))


def parameters_of(site: Site, share: Sequence[Share], own: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters of a module that adapters change there."""
    if site.kind is SiteKind.EXPERTS:
        named = {p.parameter for one in share for p in one.primitives if isinstance(p, ExpertLowRank)}
        return [f"{site.name}.{parameter}" for parameter in sorted(named)]
    return [name for leaf in ("weight", "bias") if (name := f"{site.name}.{leaf}") in own]


class _Planner:
    def __init__(
        self,
        base: MergeBase,
        shares: Shares,
        dtype: torch.dtype | None,
        copies: Mapping[str, str],
        size: int | None,
    ) -> None:
        self._base = base
        self._dtype = dtype
        self._copies = copies
        self._size = size
        self._unit_of = {name: unit for unit in base.units for name in unit.targets}
        self._resized = set(_resized(base, shares)) if size is not None else set()

    def work(self, units: Sequence[Unit], sites: Sequence[str]) -> Work:
        entries = [self._entries(unit, folded=bool(sites)) for unit in units]
        return Work(tuple(units), tuple(sites), tuple(entries))

    def _entries(self, unit: Unit, *, folded: bool) -> list[Entry]:
        source = {} if folded else self._base.source(unit)
        if source:
            return [Entry(key, self._type(stored.dtype), stored.shape) for key, stored in source.items()]
        empty = {name: torch.empty(self._shape(name), device="meta") for name in unit.targets}
        kind = self._type(self._kind(unit))
        return [Entry(name, kind, tuple(t.shape)) for name, t in self._base.written(unit, empty).items()]

    def _kind(self, unit: Unit) -> torch.dtype:
        """Return the type of a unit in the base; of a new one, that of the tensor beside it or that it was."""
        (name, *_) = unit.targets
        if name in self._unit_of:
            return self._base.dtype(unit)
        beside = self._copies.get(name) or f"{name.rpartition('.')[0]}.weight"
        return self._base.dtype(self._unit_of[self._base.aliases.get(beside, beside)])

    def _type(self, stored: torch.dtype) -> torch.dtype:
        return self._dtype if self._dtype is not None and stored.is_floating_point else stored

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self._base.own:
            shape = tuple(self._base.own[name].shape)
            return (self._size, *shape[1:]) if name in self._resized and self._size is not None else shape
        return (self._base.table.sites[name.rpartition(".")[0]].out_features,)


def _new_biases(base: MergeBase, shares: Shares) -> list[str]:
    """Return the names of biases that adapters bring to modules without one."""
    kinds = (SiteKind.LINEAR, SiteKind.HEAD, SiteKind.INNER, SiteKind.NORM)
    brought = [
        f"{name}.bias"
        for name, own in shares.items()
        if base.table.sites[name].kind in kinds and any(_has_bias(p) for share in own for p in share.primitives)
    ]
    return [name for name in brought if name not in base.own]


def _has_bias(primitive: Primitive) -> bool:
    return isinstance(primitive, Bias) or (isinstance(primitive, Replacement) and primitive.bias is not None)


def _touches(shares: Shares, name: str) -> bool:
    return name.rpartition(".")[0] in shares


def _vocabularies(base: MergeBase, shares: Shares) -> Mapping[str, int]:
    """Return for each embedding and head how many tokens it has with the adapters."""
    text = base.config.get_text_config()
    sizes = {}
    for name, site in base.table.sites.items():
        own = site.in_features if site.kind is SiteKind.EMBEDDING else site.out_features
        if site.kind not in (SiteKind.EMBEDDING, SiteKind.HEAD) or own != text.vocab_size:
            continue
        brought = [p.weight for s in shares.get(name, ()) for p in s.primitives if isinstance(p, Replacement)]
        sizes[name] = max([own, *(len(weight) for weight in brought if weight is not None)])
    return sizes


def _vocabulary(base: MergeBase, shares: Shares) -> int | None:
    """Return the size of a vocabulary that adapters make larger; None if none does. Raises MergeRefused."""
    sizes = _vocabularies(base, shares)
    size = max(sizes.values(), default=0)
    if not sizes or size == base.config.get_text_config().vocab_size:
        return None
    if short := [name for name, own in sizes.items() if own != size]:
        raise MergeRefused(
            f"an adapter makes the vocabulary {size} tokens large, but not at {listed(short)}, and a checkpoint has "
            "one size for all; serve it unmerged, with peftserve serve"
        )
    return size


def _resized(base: MergeBase, shares: Shares) -> Iterator[str]:
    for name in _vocabularies(base, shares):
        yield from (tensor for leaf in ("weight", "bias") if (tensor := f"{name}.{leaf}") in base.own)


def _groups(base: MergeBase, units: Sequence[Unit], shares: Shares) -> Iterator[tuple[Sequence[Unit], Sequence[str]]]:
    """Divide units into groups that no module has tensors in two of, in the order of the checkpoint."""
    own = {name: index for index, unit in enumerate(units) for name in unit.targets}
    group_of = list(range(len(units)))  # by unit, one of the same group
    sites: dict[str, int] = {}
    for name in base.table.sites:
        if name not in shares:
            continue
        places = [own[t] for t in parameters_of(base.table.sites[name], shares[name], own)]
        for place in places[1:]:
            _join(group_of, places[0], place)
        sites[name] = places[0]
    groups: dict[int, tuple[list[Unit], list[str]]] = {}
    for index, unit in enumerate(units):
        groups.setdefault(_root(group_of, index), ([], []))[0].append(unit)
    for name, place in sites.items():
        groups[_root(group_of, place)][1].append(name)
    yield from groups.values()


def _root(group_of: Sequence[int], index: int) -> int:
    while group_of[index] != index:
        index = group_of[index]
    return index


def _join(group_of: list[int], one: int, other: int) -> None:
    group_of[_root(group_of, other)] = _root(group_of, one)
