"""What hangs on the model for each slot: the low-rank bypasses, the other primitives, prefixes and side attention.

A slot's tensors are views of the arena, made when its adapter is attached, so that no step makes them.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import nn

from peftserve.kernels.layout import BypassBackend, Segment
from peftserve.kernels.ops import Op
from peftserve.kernels.side import SideOps

from .packing import AdapterLayout, OpLayout, SiteGroups
from .riding import Ops, conflict, needs_whole, split

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class SideView(NamedTuple):
    """keys, values: (length, kv heads, dim)."""

    keys: torch.Tensor
    values: torch.Tensor
    scale: float


class _Rider(NamedTuple):
    """A slot whose scales and biases the low-rank kernel applies. riders: these, by site."""

    base: int
    layout: AdapterLayout
    shared: Mapping[str, int]
    riders: Ops


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
    ) -> None:
        self.backend = backend
        self.side = side
        self._sites = sites
        self._ops: dict[int, Ops] = {}
        self._operators: set[int] = set()  # slots with any of these
        self._riders: dict[int, _Rider] = {}
        self._arena = arena
        self._modules = modules
        self._head = head
        self._prefixes: dict[int, Mapping[int, KeysAndValues]] = {}
        self._side_attention: dict[int, Mapping[int, SideView]] = {}
        self._vocabularies: dict[int, int] = {}  # of slots that bring a larger one than the base's

    def attach(self, slot: int, base: int, layout: AdapterLayout, shared: Mapping[str, int]) -> None:
        """The blob at element `base` of the arena now serves `slot`. shared: where the pieces beside it begin."""
        riding = split(layout.groups, layout.ops, self._sites) if self.backend.takes_rows else None
        groups, riders, rest = riding or (layout.groups, {}, layout.ops)
        if riders:
            self._riders[slot] = _Rider(base, layout, shared, riders)
        self.backend.attach(slot, base, groups)
        self._attach_ops(slot, rest, base, shared)
        if layout.prefix:
            self._prefixes[slot] = {
                layer: (keys.view(self._arena, base), values.view(self._arena, base))
                for layer, (keys, values) in layout.prefix.items()
            }
        if layout.side_attention:
            self._side_attention[slot] = {
                layer: SideView(keys.view(self._arena, base), values.view(self._arena, base), scale)
                for layer, (keys, values, scale) in layout.side_attention.items()
            }

        for op in layout.ops.get(self._head or "", ()):
            if op.kind == "replacement" and "weight" in op.places:
                self._vocabularies[slot] = op.places["weight"].shape[0]

    def detach(self, slot: int) -> None:
        self.backend.detach(slot)
        self._ops.pop(slot, None)
        self._operators.discard(slot)
        self._riders.pop(slot, None)
        self._vocabularies.pop(slot, None)
        self.side.detach(slot)
        self._prefixes.pop(slot, None)
        self._side_attention.pop(slot, None)

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment], *, capacity: int | None = None) -> bool:
        """Set the step's work: segments over token rows, and over the rows that reach the head.

        capacity: of the backend's launches; only for steps that `run_in_the_backend`. False if the step is too much for
        launches of that capacity: then it must begin again, without one.
        """
        self._settle(tokens)
        if not self.backend.begin(tokens, logits, capacity=capacity):
            return False
        self.side.begin(tokens, logits)
        return True

    def run_in_the_backend(self, tokens: Sequence[Segment]) -> bool:
        """Whether these adapters ask for nothing but the backend's launches."""
        self._settle(tokens)
        if not self._operators and not self._side_attention:
            return True
        slots = {segment.slot for segment in tokens}
        return not any(slot in there for slot in slots for there in (self._operators, self._side_attention))

    def _settle(self, tokens: Sequence[Segment]) -> None:
        while self._riders and (slots := set(self._conflicting(tokens))):  # one that stops may be in another's way then
            for slot in slots:
                self._stop_riding(slot)

    def vocabulary(self, slots: Sequence[int], base: int) -> int:
        """Tokens that the adapters in `slots` know together, of a base that knows `base`."""
        return max((self._vocabularies.get(slot, base) for slot in slots), default=base)

    def prefix(self, slot: int) -> Mapping[int, KeysAndValues]:
        """Layer to keys and values, each (length, kv heads, dim)."""
        return self._prefixes[slot]

    def side_attention(self, tokens: Sequence[Segment]) -> list[tuple[Segment, Mapping[int, SideView]]]:
        """The segments that have any, with it."""
        there = self._side_attention
        return [(s, there[s.slot]) for s in tokens if s.slot in there] if there else []

    def _attach_ops(self, slot: int, ops: Ops, base: int, shared: Mapping[str, int]) -> None:
        self._ops[slot] = ops
        self._operators.discard(slot)
        if ops:
            self._operators.add(slot)
        self.side.attach(slot, {s: [self._op(s, op, base, shared) for op in there] for s, there in ops.items()})

    def _conflicting(self, tokens: Sequence[Segment]) -> Iterator[int]:
        """Slots that ride and are mixed with operators at the same modules, or with a weight that needs them whole."""
        for segment in tokens if self._riders else ():
            rider = self._riders.get(segment.slot)
            if rider is not None and segment.weight != 1 and needs_whole(rider.riders, self._ops[segment.slot]):
                yield segment.slot
        for one, other in _overlapping(tokens) if self._riders else ():
            if one.slot in self._riders and conflict(self._riders[one.slot].riders, self._ops[other.slot]):
                yield one.slot

    def _stop_riding(self, slot: int) -> None:
        """From now on operators apply all of the slot's scales and biases."""
        base, layout, shared, _ = self._riders.pop(slot)
        self.backend.attach(slot, base, layout.groups)
        self._attach_ops(slot, layout.ops, base, shared)

    def _op(self, site: str, op: OpLayout, base: int, shared: Mapping[str, int]) -> Op:
        tensors = {name: place.view(self._arena, base, shared) for name, place in op.places.items()}
        if op.kind == "replacement":
            width = tensors["weight"].shape[0] if site == self._head and "weight" in tensors else 0
            return Op(op.kind, {"module": shell(self._modules[site], tensors), "width": width})
        return Op(op.kind, {**tensors, **op.values})


def _overlapping(segments: Sequence[Segment]) -> Iterator[tuple[Segment, Segment]]:
    """All pairs that have a row in common, both ways round."""
    ordered = sorted(segments, key=lambda s: s.start)
    for index, one in enumerate(ordered):
        for other in takewhile(lambda s: s.start < one.end, ordered[index + 1 :]):  # noqa: B023
            yield from ((one, other), (other, one))


def shell(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> nn.Module:
    """`module` with other parameters and without hooks; it shares everything else."""
    other = copy.copy(module)
    other._parameters = {**module._parameters, **parameters}  # type: ignore[dict-item]
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"):
        setattr(other, hooks, type(getattr(module, hooks))())
    other.__dict__.pop("forward", None)  # another layout of the base's own weight
    return other
