"""The adapters that are attached to the model, by slot: low-rank bypasses, operators, prefixes and side attention."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

import torch
from torch import nn

from peftserve.adapters.bypass import StateKey
from peftserve.kernels.bypass.columns.spare import SpareColumns
from peftserve.kernels.bypass.layout import BypassBackend, Capacity, Segment, StepKind
from peftserve.kernels.ops.side import SideOps

from .fused_scales import Ops, conflict, needs_whole
from .packing import AdapterLayout, SiteGroups
from .preparation import Form, KeysAndValues, Preparation, PreparedAdapter, SideView


class Attachments:
    """All that is attached to the model, and what of it each step uses.

    arena: the memory of all adapters, (elements,). backend: of the low-rank bypasses. side: of the other primitives.
    modules: the base's, by name. head: the name of the output head. columns: spare columns of the base's weights.
    inner_norms: norms that run in parts, with the number of tensors that they are given.
    """

    def __init__(
        self,
        arena: torch.Tensor,
        backend: BypassBackend,
        side: SideOps,
        modules: Mapping[str, nn.Module],
        head: str | None,
        sites: SiteGroups,
        columns: SpareColumns | None = None,
        inner_norms: Mapping[str, int] | None = None,
    ) -> None:
        self.backend = backend
        self.side = side
        self.columns = columns
        self._preparation = Preparation(arena, backend, modules, head, sites, columns, inner_norms)
        self._wide = _sites_of(sites, columns)
        self._adapters: dict[int, PreparedAdapter] = {}
        self._forms: dict[int, Form] = {}  # that they are in now
        self._fused: set[int] = set()  # slots whose scales and biases the low-rank kernel applies
        self._operators: set[int] = set()  # slots with any of these
        self._barred: set[int] = set()  # slots with any at a module that has spare columns, which then go unused
        self._side_attention: dict[int, Mapping[int, SideView]] = {}
        self._predicted: dict[int, int] = {}  # of slots that say another number of tokens than the base

    def prepare(self, base: int, layout: AdapterLayout, shared: Mapping[str, int]) -> PreparedAdapter:
        """Return all that serves the blob at element `base` of the arena. Runs on the loader's thread.

        shared: element at which each piece beside the blob begins, by key.
        """
        return self._preparation.prepare(base, layout, shared)

    def attach(self, slot: int, adapter: PreparedAdapter) -> None:
        """Let the adapter serve `slot`. Takes microseconds, whatever the adapter has."""
        self._adapters[slot] = adapter
        if adapter.fused:
            self._fused.add(slot)
        if adapter.side_attention:
            self._side_attention[slot] = adapter.side_attention
        if adapter.predicted:
            self._predicted[slot] = adapter.predicted
        self._take(slot, adapter.form)

    def detach(self, slot: int) -> None:
        self.backend.detach(slot)
        self.side.detach(slot)
        if self.columns is not None:
            self.columns.detach(slot)
        del self._adapters[slot], self._forms[slot]
        self._fused.discard(slot)
        self._operators.discard(slot)
        self._barred.discard(slot)
        self._side_attention.pop(slot, None)
        self._predicted.pop(slot, None)

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment], *, capacity: Capacity | None = None) -> bool:
        """Set the step's work: segments over token rows, and over the rows that reach the head.

        capacity: of the backend's launches; only for steps that `run_in_the_backend`. Returns False if the step is too
        much for launches of that capacity: then it must begin again, without one.
        """
        self._settle(tokens)
        if not self.backend.begin(self._without_columns(tokens, capacity), logits, capacity=capacity):
            return False
        self.side.begin(tokens, logits)
        return True

    def _without_columns(self, tokens: Sequence[Segment], capacity: Capacity | None) -> Sequence[Segment]:
        """Set the segments that run in spare columns, and return the rest.

        None runs there where operators change a product's input or output, nor in steps that are graphs.
        """
        if self.columns is None:
            return tokens
        if capacity is not None or not self._barred.isdisjoint(segment.slot for segment in tokens):
            self.columns.clear()
            return tokens
        return self.columns.begin(tokens)

    def kind_of(self, tokens: Sequence[Segment]) -> StepKind:
        """Return the kind of the graph that serves such a step best."""
        return self.backend.kind_of(tokens)

    def run_in_the_backend(self, tokens: Sequence[Segment]) -> bool:
        """Return whether the backend's launches are all that these adapters need."""
        self._settle(tokens)
        if not self._operators and not self._side_attention:
            return True
        slots = {segment.slot for segment in tokens}
        return slots.isdisjoint(self._operators) and slots.isdisjoint(self._side_attention)

    def _settle(self, tokens: Sequence[Segment]) -> None:
        """Run scales and biases as operators where they cannot be fused beside the others of this step."""
        while self._fused and (slots := set(self._conflicting(tokens))):  # one that is an operator may bar another
            for slot in slots:
                self._unfuse(slot)

    @property
    def predict_alike(self) -> bool:
        """Return whether all that are attached say as many tokens as the base."""
        return not self._predicted

    def predicted(self, slots: Sequence[int], base: int) -> int:
        """Return how many tokens the adapters in `slots` can say together. base: the base's own number."""
        return max((self._predicted.get(slot, base) for slot in slots), default=base)

    def prefix(self, slot: int) -> Mapping[int, KeysAndValues]:
        """Return a slot's prefix: layer to keys and values, each (length, kv heads, dim)."""
        return self._adapters[slot].prefix

    def states(self, slot: int) -> Mapping[StateKey, torch.Tensor]:
        """Return what a recurrent base keeps of a sequence behind a slot's prefix."""
        return self._adapters[slot].states

    def side_attention(self, tokens: Sequence[Segment]) -> list[tuple[Segment, Mapping[int, SideView]]]:
        """Return the segments whose adapters have side attention, each with that, by layer."""
        there = self._side_attention
        return [(s, there[s.slot]) for s in tokens if s.slot in there] if there else []

    def _take(self, slot: int, form: Form) -> None:
        self._forms[slot] = form
        self.backend.attach(slot, form.low_rank)
        self.side.attach(slot, form.ops)
        if self.columns is not None:
            self.columns.attach(slot, form.stored, reads_outputs=slot in self._fused)
        if form.ops:
            self._operators.add(slot)
        if not self._wide.isdisjoint(form.layouts):
            self._barred.add(slot)

    def _conflicting(self, tokens: Sequence[Segment]) -> Iterator[int]:
        """Yield the fused slots that are mixed with operators at the same modules, or whose weight bars fusion."""
        if not self._fused:
            return
        for segment in tokens:
            if segment.weight != 1 and segment.slot in self._fused and needs_whole(*self._divided(segment.slot)):
                yield segment.slot
        for one, other in _overlapping(tokens):
            if one.slot in self._fused and conflict(self._adapters[one.slot].fused, self._forms[other.slot].layouts):
                yield one.slot

    def _divided(self, slot: int) -> tuple[Ops, Ops]:
        """Return the slot's fused scales and biases, and its operators, by site."""
        return self._adapters[slot].fused, self._forms[slot].layouts

    def _unfuse(self, slot: int) -> None:
        """Apply all of the slot's scales and biases by operators from now on."""
        plain = self._adapters[slot].plain
        assert plain is not None
        self._fused.remove(slot)
        self._take(slot, plain)


def _sites_of(sites: SiteGroups, columns: SpareColumns | None) -> frozenset[str]:
    """Return the names of the modules whose products have spare columns."""
    groups = frozenset[int]() if columns is None else columns.groups
    return frozenset(name for name, (group, _) in sites.places.items() if group in groups)


def _overlapping(segments: Sequence[Segment]) -> Iterator[tuple[Segment, Segment]]:
    """Yield all pairs of segments that have a row in common, both ways round."""
    ordered = sorted(segments, key=lambda s: s.start)
    for index, one in enumerate(ordered):
        for other in takewhile(lambda s: s.start < one.end, ordered[index + 1 :]):  # noqa: B023
            yield from ((one, other), (other, one))
