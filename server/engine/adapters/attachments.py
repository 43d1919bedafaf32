"""What hangs on the model for each slot: the low-rank bypasses, the other primitives, prefixes and side attention."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

import torch
from torch import nn

from peftserve.kernels.bypass.columns.spare import SpareColumns
from peftserve.kernels.bypass.layout import BypassBackend, Capacity, Segment, StepKind
from peftserve.kernels.ops.side import SideOps

from .fused_scales import Ops, conflict, needs_whole
from .packing import AdapterLayout, SiteGroups
from .preparation import Form, KeysAndValues, Preparation, PreparedAdapter, SideView


class Attachments:
    """arena: that all slots lie in. modules: the base's, by name. head: the name of the output head."""

    def __init__(
        self,
        arena: torch.Tensor,
        backend: BypassBackend,
        side: SideOps,
        modules: Mapping[str, nn.Module],
        head: str | None,
        sites: SiteGroups,
        columns: SpareColumns | None = None,
    ) -> None:
        self.backend = backend
        self.side = side
        self.columns = columns
        self._preparation = Preparation(arena, backend, modules, head, sites, columns)
        self._wide = _sites_of(sites, columns)
        self._adapters: dict[int, PreparedAdapter] = {}
        self._forms: dict[int, Form] = {}  # that they are in now
        self._fused: set[int] = set()  # slots whose scales and biases the low-rank kernel applies
        self._operators: set[int] = set()  # slots with any of these
        self._in_the_way: set[int] = set()  # slots with any at a module that has spare columns
        self._side_attention: dict[int, Mapping[int, SideView]] = {}
        self._vocabularies: dict[int, int] = {}  # of slots that bring a larger one than the base's

    def prepare(self, base: int, layout: AdapterLayout, shared: Mapping[str, int]) -> PreparedAdapter:
        """Of the blob at element `base` of the arena, on any one thread. shared: where the pieces beside it begin."""
        return self._preparation.prepare(base, layout, shared)

    def attach(self, slot: int, adapter: PreparedAdapter) -> None:
        """It now serves `slot`. Takes microseconds, whatever the adapter has."""
        self._adapters[slot] = adapter
        if adapter.fused:
            self._fused.add(slot)
        if adapter.side_attention:
            self._side_attention[slot] = adapter.side_attention
        if adapter.vocabulary:
            self._vocabularies[slot] = adapter.vocabulary
        self._take(slot, adapter.form)

    def detach(self, slot: int) -> None:
        self.backend.detach(slot)
        self.side.detach(slot)
        if self.columns is not None:
            self.columns.detach(slot)
        del self._adapters[slot], self._forms[slot]
        self._fused.discard(slot)
        self._operators.discard(slot)
        self._in_the_way.discard(slot)
        self._side_attention.pop(slot, None)
        self._vocabularies.pop(slot, None)

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment], *, capacity: Capacity | None = None) -> bool:
        """Set the step's work: segments over token rows, and over the rows that reach the head.

        capacity: of the backend's launches; only for steps that `run_in_the_backend`. False if the step is too much for
        launches of that capacity: then it must begin again, without one.
        """
        self._settle(tokens)
        if not self.backend.begin(self._without_columns(tokens, capacity), logits, capacity=capacity):
            return False
        self.side.begin(tokens, logits)
        return True

    def _without_columns(self, tokens: Sequence[Segment], capacity: Capacity | None) -> Sequence[Segment]:
        """Set what runs in spare columns, and return the rest.

        Nothing does where operators change a product's input or output, nor in what graphs run.
        """
        if self.columns is None:
            return tokens
        if capacity is not None or not self._in_the_way.isdisjoint(segment.slot for segment in tokens):
            self.columns.clear()
            return tokens
        return self.columns.begin(tokens)

    def kind_of(self, tokens: Sequence[Segment]) -> StepKind:
        """Of the graph that serves such a step best."""
        return self.backend.kind_of(tokens)

    def run_in_the_backend(self, tokens: Sequence[Segment]) -> bool:
        """Whether these adapters ask for nothing but the backend's launches."""
        self._settle(tokens)
        if not self._operators and not self._side_attention:
            return True
        slots = {segment.slot for segment in tokens}
        return slots.isdisjoint(self._operators) and slots.isdisjoint(self._side_attention)

    def _settle(self, tokens: Sequence[Segment]) -> None:
        while self._fused and (slots := set(self._conflicting(tokens))):  # one that stops may be in another's way then
            for slot in slots:
                self._unfuse(slot)

    def vocabulary(self, slots: Sequence[int], base: int) -> int:
        """Tokens that the adapters in `slots` know together, of a base that knows `base`."""
        return max((self._vocabularies.get(slot, base) for slot in slots), default=base)

    def prefix(self, slot: int) -> Mapping[int, KeysAndValues]:
        """Layer to keys and values, each (length, kv heads, dim)."""
        return self._adapters[slot].prefix

    def side_attention(self, tokens: Sequence[Segment]) -> list[tuple[Segment, Mapping[int, SideView]]]:
        """The segments that have any, with it."""
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
            self._in_the_way.add(slot)

    def _conflicting(self, tokens: Sequence[Segment]) -> Iterator[int]:
        """Slots that ride and are mixed with operators at the same modules, or with a weight that needs them whole."""
        if not self._fused:
            return
        for segment in tokens:
            if segment.weight != 1 and segment.slot in self._fused and needs_whole(*self._divided(segment.slot)):
                yield segment.slot
        for one, other in _overlapping(tokens):
            if one.slot in self._fused and conflict(self._adapters[one.slot].fused, self._forms[other.slot].layouts):
                yield one.slot

    def _divided(self, slot: int) -> tuple[Ops, Ops]:
        """What rides, and what does not."""
        return self._adapters[slot].fused, self._forms[slot].layouts

    def _unfuse(self, slot: int) -> None:
        """From now on operators apply all of the slot's scales and biases."""
        plain = self._adapters[slot].plain
        assert plain is not None
        self._fused.remove(slot)
        self._take(slot, plain)


def _sites_of(sites: SiteGroups, columns: SpareColumns | None) -> frozenset[str]:
    """Names of the modules whose products have spare columns."""
    groups = frozenset[int]() if columns is None else columns.groups
    return frozenset(name for name, (group, _) in sites.places.items() if group in groups)


def _overlapping(segments: Sequence[Segment]) -> Iterator[tuple[Segment, Segment]]:
    """All pairs that have a row in common, both ways round."""
    ordered = sorted(segments, key=lambda s: s.start)
    for index, one in enumerate(ordered):
        for other in takewhile(lambda s: s.start < one.end, ordered[index + 1 :]):  # noqa: B023
            yield from ((one, other), (other, one))
