"""All that is attached to the model for one adapter, made on a thread of the loader's: steps only put it in place.

Its tensors are views of the arena. It is made when the adapter's range of the arena is known, and is valid until the
adapter leaves that range.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn

from peftserve.adapters.bypass import StateKey
from peftserve.kernels.bypass.columns.spare import SpareColumns, Stored
from peftserve.kernels.bypass.layout import BlobLayout, BypassBackend, Prepared
from peftserve.kernels.ops.formulas import Op

from ..model.wrapped_module import side_by_side
from ..private.torch_private import bare_copy
from .fused_scales import Ops, split
from .packing import AdapterLayout, OpLayout, SiteGroups

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class SideView(NamedTuple):
    """Side attention of one layer. keys, values: (length, kv heads, dim). scale: of the scores."""

    keys: torch.Tensor
    values: torch.Tensor
    scale: float


class Form(NamedTuple):
    """One division of the adapter's work between the low-rank backend and operators.

    low_rank: the backend's work. ops: the operators, by site. layouts: of these operators.
    stored: the backend's work in the form that spare columns take; None where they do not take it.
    """

    low_rank: Prepared
    ops: Mapping[str, Sequence[Op]]
    layouts: Ops
    stored: Stored | None = None


@dataclass(frozen=True)
class PreparedAdapter:
    """An adapter that is ready to be attached.

    form: how it runs unless others of the step bar it. fused: the scales and biases that are fused then, by site.
    plain: how it runs with all scales and biases as operators; None if none is fused.
    prefix, side_attention: by layer. states: what a recurrent base keeps behind the prefix.
    predicted: how many tokens it can say; 0 for those of the base.
    """

    form: Form
    fused: Ops
    plain: Form | None
    prefix: Mapping[int, KeysAndValues]
    states: Mapping[StateKey, torch.Tensor]
    side_attention: Mapping[int, SideView]
    predicted: int


class Slots(Protocol):
    """Attaches adapters to the model, by slot: `Attachments`."""

    def prepare(self, base: int, layout: AdapterLayout, shared: Mapping[str, int]) -> PreparedAdapter:
        """Return what is to be attached. Runs on the loader's thread."""

    def attach(self, slot: int, adapter: PreparedAdapter) -> None: ...

    def detach(self, slot: int) -> None: ...


class Preparation:
    """Prepares adapters. Changes nothing that steps read.

    arena: the memory of all adapters, (elements,). modules: the base's, by name. head: the name of the output head.
    inner_norms: norms that run in parts, with the number of tensors that they are given.
    """

    def __init__(
        self,
        arena: torch.Tensor,
        backend: BypassBackend,
        modules: Mapping[str, nn.Module],
        head: str | None,
        sites: SiteGroups,
        columns: SpareColumns | None = None,
        inner_norms: Mapping[str, int] | None = None,
    ) -> None:
        self._arena = arena
        self._backend = backend
        self._modules = modules
        self._head = head
        self._sites = sites
        self._columns = columns
        self._inner_norms = inner_norms or {}

    def prepare(self, base: int, layout: AdapterLayout, shared: Mapping[str, int]) -> PreparedAdapter:
        """Return all that serves the blob at element `base` of the arena.

        shared: element at which each piece beside the blob begins, by key.
        """
        fusion = split(layout.groups, layout.ops, self._sites) if self._backend.fuses_scale_and_bias else None
        groups, fused, rest = fusion or (layout.groups, {}, layout.ops)
        return PreparedAdapter(
            form=self._form(groups, rest, base, shared),
            fused=fused,
            plain=self._form(layout.groups, layout.ops, base, shared) if fused else None,
            prefix={
                layer: (keys.view(self._arena, base), values.view(self._arena, base))
                for layer, (keys, values) in layout.prefix.items()
            },
            states={key: place.view(self._arena, base) for key, place in layout.states},
            side_attention={
                layer: SideView(keys.view(self._arena, base), values.view(self._arena, base), scale)
                for layer, (keys, values, scale) in layout.side_attention.items()
            },
            predicted=layout.predicted,
        )

    def _form(self, groups: BlobLayout, layouts: Ops, base: int, shared: Mapping[str, int]) -> Form:
        ops = {site: [self._op(site, op, base, shared) for op in there] for site, there in layouts.items()}
        stored = None if self._columns is None else self._columns.prepare(base, groups)
        return Form(self._backend.prepare(base, groups), ops, layouts, stored)

    def _op(self, site: str, op: OpLayout, base: int, shared: Mapping[str, int]) -> Op:
        tensors = {name: place.view(self._arena, base, shared) for name, place in op.places.items()}
        if op.kind == "replacement":
            width = tensors["weight"].shape[0] if site == self._head and "weight" in tensors else 0
            module: Callable[[torch.Tensor], torch.Tensor] = shell(self._modules[site], tensors)
            if site in self._inner_norms:
                module = side_by_side(module, self._inner_norms[site])
            return Op(op.kind, {"module": module, "width": width})
        return Op(op.kind, {**tensors, **op.values})


def shell(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> nn.Module:
    """Return a copy of `module` with other parameters and without hooks; it shares everything else."""
    other = bare_copy(module, parameters)
    other.__dict__.pop("forward", None)  # another layout of the base's own weight
    return other
