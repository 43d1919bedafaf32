"""A compiled adapter as one rank has it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from peftserve.adapters.bypass import Bypass, KVPrefix, SideAttention
from peftserve.adapters.errors import AdapterTooLarge, UnsupportedAdapter
from peftserve.adapters.primitives import Dense, ExpertLowRank, Primitive
from peftserve.adapters.sites import Site

from .cuts import WHOLE, Cut
from .slices import slice_primitive, unshared


class BypassCutter:
    """Cuts adapters as the base is cut.

    sites: of the whole base, by name. cuts: of its modules and of the stacked weights of experts, by name. heads: by
    layer, the kv heads that this rank has of how many. max_dense: most bytes of one adapter's dense deltas on a rank.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        cuts: Mapping[str, Cut],
        heads: Mapping[int, tuple[torch.Tensor, int]],
        rank: int,
        ranks: int,
        max_dense: int,
    ) -> None:
        self._sites = sites
        self._cuts = cuts
        self._heads = heads
        self._rank = rank
        self._ranks = ranks
        self._max_dense = max_dense

    def __call__(self, bypass: Bypass) -> Bypass:
        """Return this rank's part of an adapter. Raises AdapterError where it cannot be cut exactly."""
        sites = {name: tuple(self._part(name, p) for p in primitives) for name, primitives in bypass.sites.items()}
        dense = sum(p.num_bytes for primitives in sites.values() for p in primitives if isinstance(p, Dense))
        if dense > self._max_dense:
            raise AdapterTooLarge(
                f"divided among {self._ranks} ranks its deltas are matrices that take {dense} bytes on each; the "
                f"server's --max-dense-delta is {self._max_dense}",
                param="files",
            )
        return replace(
            bypass,
            sites=sites,
            prefix=None if bypass.prefix is None else self._prefix(bypass.prefix),
            side_attention=self._by_layer(bypass.side_attention, self._side),
        )

    def _part(self, name: str, primitive: Primitive) -> Primitive:
        site = self._sites[name]
        whole = unshared(primitive, (site.in_features, site.out_features))
        place = f"{name}.{primitive.parameter}" if isinstance(primitive, ExpertLowRank) else name
        try:
            return slice_primitive(whole, cut, self._ranks)[self._rank] if (cut := self._cut(place)) else whole
        except UnsupportedAdapter as error:
            raise UnsupportedAdapter(f"{error.message} (at {name})", param=error.param) from None

    def _cut(self, place: str) -> Cut | None:
        cut = self._cuts.get(place, WHOLE)
        return None if cut.inputs is None and cut.outputs is None else cut

    def _prefix(self, prefix: KVPrefix) -> KVPrefix:
        layers = {
            index: (self._heads_of(index, k), self._heads_of(index, v)) for index, (k, v) in prefix.layers.items()
        }
        return replace(prefix, layers=layers)

    def _side(self, index: int, side: SideAttention) -> SideAttention:
        return replace(side, keys=self._heads_of(index, side.keys), values=self._heads_of(index, side.values))

    def _by_layer(
        self, layers: Mapping[int, SideAttention] | None, part: Callable[[int, SideAttention], SideAttention]
    ) -> Mapping[int, SideAttention] | None:
        return None if layers is None else {index: part(index, side) for index, side in layers.items()}

    def _heads_of(self, index: int, tensor: torch.Tensor) -> torch.Tensor:
        """Return this rank's heads of keys or values (length, heads, dim); all where there are not as many as expected,
        which is refused where prefixes are compared with the cache."""
        own, count = self._heads.get(index, (None, 0))
        return tensor.index_select(1, own) if own is not None and tensor.shape[1] == count else tensor
