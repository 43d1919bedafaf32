"""A Bypass as one contiguous blob, in the layout that the kernels read.

Every tensor starts at a multiple of `ALIGNMENT` elements. A's of sites that share an input are stacked.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

import torch

from peftserve.adapters.bypass import Bypass, StateKey
from peftserve.adapters.primitives import LowRank, Primitive
from peftserve.kernels.bypass.layout import BlobLayout, Group, GroupLayout

_NOTHING: Mapping[str, int] = {}

ALIGNMENT = 32  # elements: 64 bytes in bfloat16, for vector loads


@dataclass(frozen=True)
class SiteGroups:
    """The sites, in groups that read one input.

    groups: as the kernels know them. places: site name to (group index, position in the group).
    """

    groups: tuple[Group, ...]
    places: Mapping[str, tuple[int, int]]


class Place(NamedTuple):
    """One tensor in the blob.

    offset: in elements of the arena's dtype. dtype: None for the arena's own, else int32, or a state's.
    shared: key of the piece that holds it instead, if other adapters have the same tensor.
    """

    offset: int
    shape: torch.Size
    dtype: torch.dtype | None = None
    shared: str | None = None

    def view(self, arena: torch.Tensor, base: int, shared: Mapping[str, int] = _NOTHING) -> torch.Tensor:
        """Return the tensor of the blob at element `base` of the arena. shared: element at which each piece begins."""
        start, count = (base if self.shared is None else shared[self.shared]) + self.offset, self.shape.numel()
        if self.dtype is None:  # in one call: an adapter may have thousands of places
            strides = [*accumulate(reversed(self.shape[1:]), mul, initial=1)][::-1]
            return arena.as_strided(self.shape, strides[: len(self.shape)], start)
        taken = -(-count * self.dtype.itemsize // arena.element_size())
        return arena[start : start + taken].view(self.dtype)[:count].view(self.shape)


class OpLayout(NamedTuple):
    """One primitive of one site. values: its fields that are no tensors."""

    kind: str
    places: Mapping[str, Place]
    values: Mapping[str, Any]


class StateLayout(NamedTuple):
    """What a recurrent base keeps of one kind behind a prefix."""

    key: StateKey
    place: Place


class SideLayout(NamedTuple):
    """Attention beside one layer's own. scale: of its scores."""

    keys: Place
    values: Place
    scale: float


@dataclass(frozen=True)
class AdapterLayout:
    """The places of an adapter's tensors in its blob, and the facts that the engine needs.

    groups: the low-rank bypasses. ops: the other primitives, by site. prefix: layer to places of keys and values.
    states: what a recurrent base keeps behind it. side_attention: by layer. prefix_length: tokens of the prefix; 0
    without one. invocation: as in `Bypass`.
    vocabulary, predicted: as in `Bypass`.
    """

    groups: BlobLayout = field(default_factory=dict)
    ops: Mapping[str, tuple[OpLayout, ...]] = field(default_factory=dict)
    prefix: Mapping[int, tuple[Place, Place]] = field(default_factory=dict)
    states: tuple[StateLayout, ...] = ()
    side_attention: Mapping[int, SideLayout] = field(default_factory=dict)
    prefix_length: int = 0
    invocation: tuple[int, ...] = ()
    vocabulary: int = 0
    predicted: int = 0


@dataclass(frozen=True, eq=False)
class SharedPiece:
    """A tensor that several adapters have in common, which the device holds once.

    key: hash of its shape and its numbers. data: (elements,) as in `Blob`.
    """

    key: str
    data: torch.Tensor


@dataclass(frozen=True)
class Blob:
    """A compiled adapter in host memory.

    data: (elements,) in the arena's dtype, pinned when the device is a GPU. shared: the pieces beside it.
    """

    data: torch.Tensor
    layout: AdapterLayout
    shared: tuple[SharedPiece, ...] = ()

    @property
    def num_elements(self) -> int:
        return self.data.numel() + sum(piece.data.numel() for piece in self.shared)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of data and pieces, whoever else has the pieces too."""
        return self.num_elements * self.data.element_size()


class _Writer:
    """Collects tensors at aligned offsets. dtype: the arena's, to which all but integers and states are converted."""

    def __init__(self, dtype: torch.dtype, pin: bool) -> None:
        self.shared: dict[int, SharedPiece] = {}
        self._dtype = dtype
        self._pin = pin
        self._pieces: list[tuple[Place, torch.Tensor]] = []
        self._size = 0

    def add(self, tensor: torch.Tensor) -> Place:
        return self._add(tensor, _stored_as(tensor))

    def keep(self, tensor: torch.Tensor) -> Place:
        """Add a tensor in its own type."""
        return self._add(tensor, None if tensor.dtype == self._dtype else tensor.dtype)

    def _add(self, tensor: torch.Tensor, stored_as: torch.dtype | None) -> Place:
        place = Place(self._size, tensor.shape, stored_as)
        self._pieces.append((place, tensor))
        self._size += -(-self._num_elements(place) // ALIGNMENT) * ALIGNMENT
        return place

    def share(self, tensor: torch.Tensor) -> Place:
        """Put the tensor beside the blob; one that several primitives have is one piece."""
        place = Place(0, tensor.shape, _stored_as(tensor))
        if id(tensor) not in self.shared:
            data = torch.zeros(self._num_elements(place), dtype=self._dtype, pin_memory=self._pin)
            place.view(data, 0).copy_(tensor)
            self.shared[id(tensor)] = SharedPiece(_hash(data, tensor.shape), data)
        return place._replace(shared=self.shared[id(tensor)].key)

    def _num_elements(self, place: Place) -> int:
        """Return the elements of the arena's type that it takes."""
        return -(-place.shape.numel() * (place.dtype or self._dtype).itemsize // self._dtype.itemsize)

    def write(self) -> torch.Tensor:
        data = torch.zeros(self._size, dtype=self._dtype, pin_memory=self._pin)
        for place, tensor in self._pieces:
            place.view(data, 0).copy_(tensor)
        return data


def _stored_as(tensor: torch.Tensor) -> torch.dtype | None:
    """Return the type as `Place.dtype` has it."""
    return None if tensor.is_floating_point() else torch.int32


def _hash(data: torch.Tensor, shape: torch.Size) -> str:
    digest = hashlib.sha256(repr((tuple(shape), data.dtype)).encode())
    digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack(bypass: Bypass, sites: SiteGroups, dtype: torch.dtype, *, pin: bool = False) -> Blob:
    """Return the bypass laid out for the arena. Every site with a low-rank bypass must be in `sites`.

    dtype: the arena's. pin: whether to use pinned memory.
    """
    writer = _Writer(dtype, pin)
    groups = _pack_groups(writer, bypass, sites)
    ops = {name: tuple(_pack_op(writer, p) for p in _others(primitives)) for name, primitives in bypass.sites.items()}
    prefix, states = ({}, {}) if bypass.prefix is None else (bypass.prefix.layers, bypass.prefix.states)
    side = bypass.side_attention or {}
    layout = AdapterLayout(
        groups=groups,
        ops={name: layouts for name, layouts in ops.items() if layouts},
        prefix={layer: (writer.add(keys), writer.add(values)) for layer, (keys, values) in prefix.items()},
        states=tuple(StateLayout(key, writer.keep(state)) for key, state in states.items()),
        side_attention={i: SideLayout(writer.add(s.keys), writer.add(s.values), s.scale) for i, s in side.items()},
        prefix_length=0 if bypass.prefix is None else bypass.prefix.length,
        invocation=bypass.invocation,
        vocabulary=bypass.vocabulary,
        predicted=bypass.predicted,
    )
    return Blob(writer.write(), layout, tuple(writer.shared.values()))


def _others(primitives: tuple[Primitive, ...]) -> list[Primitive]:
    return [primitive for primitive in primitives if not isinstance(primitive, LowRank)]


def _pack_op(writer: _Writer, primitive: Primitive) -> OpLayout:
    tensors = primitive.tensors()
    values = {f.name: getattr(primitive, f.name) for f in fields(primitive) if f.name not in tensors}
    places = {name: (writer.share if name in primitive.shared else writer.add)(t) for name, t in tensors.items()}
    return OpLayout(primitive.kind, places, values)


def _pack_groups(writer: _Writer, bypass: Bypass, sites: SiteGroups) -> dict[int, GroupLayout]:
    by_group: dict[int, dict[int, LowRank]] = {}
    for name, primitives in bypass.sites.items():
        parts = [primitive for primitive in primitives if isinstance(primitive, LowRank)]
        if parts:
            group, position = sites.places[name]
            by_group.setdefault(group, {})[position] = _merge(parts)
    return {index: _pack_group(writer, sites.groups[index], by_group[index]) for index in sorted(by_group)}


def _merge(primitives: list[LowRank]) -> LowRank:
    """Return several low-rank bypasses of one site as one: their ranks add up."""
    if len(primitives) == 1:
        return primitives[0]
    return LowRank(torch.cat([p.a for p in primitives]), torch.cat([p.b for p in primitives], dim=1))


def _pack_group(writer: _Writer, group: Group, parts: Mapping[int, LowRank]) -> GroupLayout:
    positions = range(len(group.out_features))
    stacked = torch.cat([parts[i].a for i in positions if i in parts])
    a = writer.add(stacked.t() if group.gather else stacked).offset
    ranks = tuple(parts[i].rank if i in parts else 0 for i in positions)
    b = tuple(writer.add(parts[i].b.t()).offset if i in parts else 0 for i in positions)
    return GroupLayout(a=a, ranks=ranks, b=b)
