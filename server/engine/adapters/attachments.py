"""What hangs on the model for each slot: the low-rank bypasses, the other primitives, prefixes and side attention.

A slot's tensors are views of the arena, made when its adapter is attached, so that no step makes them.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from peftserve.kernels.layout import BypassBackend, Segment
from peftserve.kernels.ops import Op
from peftserve.kernels.side import SideOps

from .packing import AdapterLayout, OpLayout

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class SideView(NamedTuple):
    """keys, values: (length, kv heads, dim)."""

    keys: torch.Tensor
    values: torch.Tensor
    scale: float


class Attachments:
    """arena: that all slots lie in. modules: the base's, by name. head: the name of the output head."""

    def __init__(
        self,
        arena: torch.Tensor,
        backend: BypassBackend,
        side: SideOps,
        modules: Mapping[str, nn.Module],
        head: str | None,
    ) -> None:
        self.backend = backend
        self.side = side
        self._arena = arena
        self._modules = modules
        self._head = head
        self._prefixes: dict[int, Mapping[int, KeysAndValues]] = {}
        self._side_attention: dict[int, Mapping[int, SideView]] = {}
        self._vocabularies: dict[int, int] = {}  # of slots that bring a larger one than the base's

    def attach(self, slot: int, base: int, layout: AdapterLayout, shared: Mapping[str, int]) -> None:
        """The blob at element `base` of the arena now serves `slot`. shared: where the pieces beside it begin."""
        self.backend.attach(slot, base, layout.groups)
        self.side.attach(slot, {s: [self._op(s, op, base, shared) for op in ops] for s, ops in layout.ops.items()})
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
        self._vocabularies.pop(slot, None)
        self.side.detach(slot)
        self._prefixes.pop(slot, None)
        self._side_attention.pop(slot, None)

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment]) -> None:
        """Set the step's work: segments over token rows, and over the rows that reach the head."""
        self.backend.begin(tokens, logits)
        self.side.begin(tokens, logits)

    def vocabulary(self, slots: Sequence[int], base: int) -> int:
        """Tokens that the adapters in `slots` know together, of a base that knows `base`."""
        return max((self._vocabularies.get(slot, base) for slot in slots), default=base)

    def prefix(self, slot: int) -> Mapping[int, KeysAndValues]:
        """Layer to keys and values, each (length, kv heads, dim)."""
        return self._prefixes[slot]

    def side_attention(self, tokens: Sequence[Segment]) -> list[tuple[Segment, Mapping[int, SideView]]]:
        """The segments that have any, with it."""
        return [(s, self._side_attention[s.slot]) for s in tokens if s.slot in self._side_attention]

    def _op(self, site: str, op: OpLayout, base: int, shared: Mapping[str, int]) -> Op:
        tensors = {name: place.view(self._arena, base, shared) for name, place in op.places.items()}
        if op.kind == "replacement":
            width = tensors["weight"].shape[0] if site == self._head and "weight" in tensors else 0
            return Op(op.kind, {"module": shell(self._modules[site], tensors), "width": width})
        return Op(op.kind, {**tensors, **op.values})


def shell(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> nn.Module:
    """`module` with other parameters and without hooks; it shares everything else."""
    other = copy.copy(module)
    other._parameters = {**module._parameters, **parameters}  # type: ignore[dict-item]
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"):
        setattr(other, hooks, type(getattr(module, hooks))())
    other.__dict__.pop("forward", None)  # another layout of the base's own weight
    return other
