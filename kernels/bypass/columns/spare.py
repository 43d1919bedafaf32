"""The bypasses of long segments inside the base's own products.

    y = [x | h] [W | B]ᵀ,  h = s.weight · x Aᵀ in the rows of segment s and the columns of its adapter, 0 elsewhere

W has spare columns behind its own. They hold the B of the adapters that work on many rows now, h lies in as many
columns behind x, and one product gives base and bypass with one rounding: y is neither read nor written once more.
Adapters stay in the columns until others need them, and are known by their slots; a slot that is detached has none.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ..layout import BlobLayout, Group, GroupLayout, RowSet, Segment
from ..torch.factors import view_factors
from .choice import LEAST_ROWS, Needs, choose
from .places import ColumnPlaces, needed
from .products import ColumnProducts, Held, TorchColumns


class Stored(NamedTuple):
    """An adapter that may go into columns. needs: how many. form: its factors, as the products take them."""

    needs: Needs
    form: Any


class SpareColumns:
    """The spare columns of the groups of one arena whose weights have some. Slots come and go, as with a backend.

    active: whether any segment of the step is in the columns. whole: whether all of them are.
    """

    def __init__(
        self,
        arena: torch.Tensor,
        groups: Sequence[Group],
        weights: Mapping[int, torch.Tensor],
        *,
        least_rows: int = LEAST_ROWS,
        products: ColumnProducts[Any] | None = None,
    ) -> None:
        """Make the columns empty.

        weights: by group, (sum of out_features, in_features + spare columns), of as many spare columns for each.
        least_rows: of an adapter in a step, for which it goes by columns. products: on these weights; None for those of
        the arena's device.
        """
        self.active = self.whole = False
        self._arena = arena
        self._groups = tuple(groups)
        self._weights = dict(weights)
        in_features = {group: groups[group].in_features for group in weights}
        self._columns = min((w.shape[1] - in_features[group] for group, w in weights.items()), default=0)
        self._least_rows = least_rows
        self._products = products or _products(arena, weights, in_features)
        self._places = ColumnPlaces(self._columns)
        self._slots: dict[int, Stored] = {}  # that may be in the columns
        self._reading: set[int] = set()  # that scale outputs as the base leaves them
        self._used: dict[int, int] = {}  # columns of each group in the step

    @property
    def groups(self) -> frozenset[int]:
        return frozenset(self._weights)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all spare columns."""
        return sum(w.shape[0] * self._columns * w.element_size() for w in self._weights.values())

    def columns_of(self, group: int) -> int:
        """Return the number of spare columns behind the weight of a group."""
        return self._columns if group in self._weights else 0

    def prepare(self, base: int, layout: BlobLayout) -> Stored | None:
        """Prepare the blob at element `base` of the arena, on any one thread.

        Returns None if it cannot be in columns.
        """
        there = {group: entry for group, entry in layout.items() if self._groups[group].rows is RowSet.TOKENS}
        if not there or not all(self._takes(group, entry) for group, entry in there.items()):
            return None
        there = {group: entry for group, entry in there.items() if entry.rank}
        factors = {i: view_factors(self._arena, base, self._groups[i], entry) for i, entry in there.items()}
        return Stored({i: needed(entry.rank) for i, entry in there.items()}, self._products.prepare(factors))

    def attach(self, slot: int, stored: Stored | None, *, reads_outputs: bool = False) -> None:
        """Serve a slot with a prepared adapter, or with None.

        reads_outputs: whether the adapter scales outputs, for which it must see them as the base leaves them.
        """
        self.detach(slot)
        if stored is not None:
            self._slots[slot] = stored
        if reads_outputs:
            self._reading.add(slot)

    def detach(self, slot: int) -> None:
        """Stop serving a slot, and free its columns."""
        self._slots.pop(slot, None)
        self._reading.discard(slot)
        self._places.forget(slot)

    def begin(self, tokens: Sequence[Segment]) -> list[Segment]:
        """Set the step's work, of segments over token rows. Returns the segments that are left to the backend."""
        self.clear()
        candidates = {segment.slot for segment in tokens} & self._slots.keys()
        needs = {slot: self._slots[slot].needs for slot in candidates}
        chosen = choose(tokens, needs, self._reading, self._columns, self._least_rows)
        if not chosen:
            return [*tokens]
        self._bring({slot: needs[slot] for slot in chosen})
        held = {slot: self._held(slot) for slot in chosen}
        mine = [segment for segment in tokens if segment.slot in held and segment.start < segment.end]
        self._products.begin(held, mine)
        self._used = {group: self._places.end(group, chosen) for group in self._weights}
        rest = [segment for segment in tokens if segment.slot not in held]
        self.active, self.whole = True, not rest
        return rest

    def clear(self) -> None:
        """Take all of the step out of the columns."""
        self.active = self.whole = False

    def turn_off(self) -> None:
        """Use no columns from now on, for models that cannot."""
        self.clear()
        self._weights = {}
        self._slots.clear()

    def product(self, group: int, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the outputs (..., sum of out_features) of all sites, with the bypasses that are in the columns.

        x: (..., in_features), or with as many columns behind them as the weight has, which are overwritten.
        """
        weight, width, used = self._weights[group], self._groups[group].in_features, self._used[group]
        if not used:
            return F.linear(x[..., :width], weight[:, :width], bias)
        wide = x if x.shape[-1] > width else x.new_empty(*x.shape[:-1], weight.shape[1])
        rows = wide.flatten(0, -2)
        self._products.fill(group, rows[:, :width] if wide is x else x.flatten(0, -2), rows, used)
        return F.linear(wide[..., : width + used], weight[:, : width + used], bias)

    def _takes(self, group: int, layout: GroupLayout) -> bool:
        rows = {*layout.scales, *layout.biases} - {None}
        return group in self._weights and not rows and needed(layout.rank) <= self._columns

    def _bring(self, needs: Mapping[int, Needs]) -> None:
        """Bring missing adapters into the columns. If that fails half way, none of them is there."""
        missing = self._places.place(needs)
        try:
            self._products.store({slot: self._held(slot) for slot in missing})
        except BaseException:
            for slot in missing:
                self._places.forget(slot)
            raise

    def _held(self, slot: int) -> Held[Any]:
        needs, form = self._slots[slot]
        return Held(form, {group: self._places.start(slot, group) for group in needs})

    def check_integrity(self) -> None:
        """Raises AssertionError where two slots share a column, or a slot has columns that is not attached."""
        self._places.check_integrity()
        assert self._places.slots <= self._slots.keys(), "a slot that is gone has columns"


def _products(
    arena: torch.Tensor, weights: Mapping[int, torch.Tensor], in_features: Mapping[int, int]
) -> ColumnProducts[Any]:
    if arena.is_cuda:
        from .triton_products import TritonColumns  # not on machines without a GPU, which need no triton

        products = TritonColumns(arena, weights, in_features)
        products.warm_up()
        return products
    return TorchColumns(weights, in_features)
