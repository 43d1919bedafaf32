"""All that hangs on the model for one adapter, made on the loader's thread: the step loop only puts it in place.

Its tensors are views of the arena. It is made when the adapter's range of the arena is known, and holds until the
adapter leaves that range.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from peftserve.kernels.bypass.columns.spare import SpareColumns, Stored
from peftserve.kernels.bypass.layout import BlobLayout, BypassBackend, Prepared
from peftserve.kernels.ops.formulas import Op

from .packing import AdapterLayout, OpLayout, SiteGroups
from .riding import Ops, split

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class SideView(NamedTuple):
    """keys, values: (length, kv heads, dim)."""

    keys: torch.Tensor
    values: torch.Tensor
    scale: float


class Form(NamedTuple):
    """One division of the adapter's work. low_rank: what the backend does. ops: the operators beside it, by site.

    layouts: of these operators. stored: the same as what the backend does, for spare columns; None if not for these.
    """

    low_rank: Prepared
    ops: Mapping[str, Sequence[Op]]
    layouts: Ops
    stored: Stored | None = None


@dataclass(frozen=True)
class PreparedAdapter:
    """form: how it runs as long as nothing is in the way.

    riders: the scales and biases that ride in the backend then, by site. plain: all as operators; None if none rides.
    prefix, side_attention: by layer. vocabulary: tokens of its head, if it brings one; else 0.
    """

    form: Form
    riders: Ops
    plain: Form | None
    prefix: Mapping[int, KeysAndValues]
    side_attention: Mapping[int, SideView]
    vocabulary: int


class Preparation:
    """arena: that all adapters lie in. modules: the base's, by name. head: the name of the output head.

    Changes nothing that steps read.
    """

    def __init__(
        self,
        arena: torch.Tensor,
        backend: BypassBackend,
        modules: Mapping[str, nn.Module],
        head: str | None,
        sites: SiteGroups,
        columns: SpareColumns | None = None,
    ) -> None:
        self._arena = arena
        self._backend = backend
        self._modules = modules
        self._head = head
        self._sites = sites
        self._columns = columns

    def prepare(self, base: int, layout: AdapterLayout, shared: Mapping[str, int]) -> PreparedAdapter:
        """Of the blob at element `base` of the arena. shared: where the pieces beside it begin."""
        riding = split(layout.groups, layout.ops, self._sites) if self._backend.fuses_scale_and_bias else None
        groups, riders, rest = riding or (layout.groups, {}, layout.ops)
        return PreparedAdapter(
            form=self._form(groups, rest, base, shared),
            riders=riders,
            plain=self._form(layout.groups, layout.ops, base, shared) if riders else None,
            prefix={
                layer: (keys.view(self._arena, base), values.view(self._arena, base))
                for layer, (keys, values) in layout.prefix.items()
            },
            side_attention={
                layer: SideView(keys.view(self._arena, base), values.view(self._arena, base), scale)
                for layer, (keys, values, scale) in layout.side_attention.items()
            },
            vocabulary=self._vocabulary(layout),
        )

    def _form(self, groups: BlobLayout, layouts: Ops, base: int, shared: Mapping[str, int]) -> Form:
        ops = {site: [self._op(site, op, base, shared) for op in there] for site, there in layouts.items()}
        stored = None if self._columns is None else self._columns.prepare(base, groups)
        return Form(self._backend.prepare(base, groups), ops, layouts, stored)

    def _op(self, site: str, op: OpLayout, base: int, shared: Mapping[str, int]) -> Op:
        tensors = {name: place.view(self._arena, base, shared) for name, place in op.places.items()}
        if op.kind == "replacement":
            width = tensors["weight"].shape[0] if site == self._head and "weight" in tensors else 0
            return Op(op.kind, {"module": shell(self._modules[site], tensors), "width": width})
        return Op(op.kind, {**tensors, **op.values})

    def _vocabulary(self, layout: AdapterLayout) -> int:
        there = layout.ops.get(self._head or "", ())
        replaced = [op.places["weight"] for op in there if op.kind == "replacement" and "weight" in op.places]
        return replaced[-1].shape[0] if replaced else 0


def shell(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> nn.Module:
    """`module` with other parameters and without hooks; it shares everything else."""
    other = copy.copy(module)
    other._parameters = {**module._parameters, **parameters}  # type: ignore[dict-item]
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"):
        setattr(other, hooks, type(getattr(module, hooks))())
    other.__dict__.pop("forward", None)  # another layout of the base's own weight
    return other
