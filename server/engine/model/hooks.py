"""Adds the step's adapters to the base's modules, around their `forward` and through hooks: model code is untouched.

Modules that read one input are run together (`siblings.py`). Hooks of norms and experts are on the model only in steps
whose adapters need them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from peftserve.kernels.bypass.columns.spare import SpareColumns
from peftserve.kernels.bypass.layout import BypassBackend
from peftserve.kernels.ops.formulas import Stage
from peftserve.kernels.ops.side import SideOps
from peftserve.kernels.ops.site_plan import SitePlan

from ..adapters.packing import SiteGroups
from .callouts import Call, is_traced
from .experts import ExpertsBypass
from .siblings import Member, Siblings


class BypassHooks:
    """The runner calls `begin` when the step's work is set, and `end` when it has run.

    active: the step has adapters.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        sites: SiteGroups,
        backend: BypassBackend,
        side: SideOps,
        experts: ExpertsBypass | None = None,
        fused: Mapping[int, nn.Linear] | None = None,
        fused_rows: int | None = None,
        columns: SpareColumns | None = None,
    ) -> None:
        """fused: of each group that has one, its modules as one, for up to `fused_rows` rows. columns: behind weights,
        for the bypasses that the step's products themselves give.
        """
        self.active = False
        self._backend = backend
        self._modules = modules
        self._side = side
        self._experts = experts
        self._columns = columns
        self._streams: dict[str, torch.Tensor] = {}  # inputs of modules that another module's adapters read
        self._handles: list[Any] = []
        self._places = sites.places
        members: list[list[Member]] = [[] for _ in sites.groups]
        for name, (group, position) in sorted(sites.places.items(), key=lambda item: item[1]):
            width = sites.groups[group].out_features[position]
            members[group].append(Member(name, modules[name], modules[name].forward, width))
        self._groups = [
            Siblings(backend, index, group, self._streams, sites.groups[index].in_features)
            for index, group in enumerate(members)
        ]
        for group_index, module in (fused or {}).items():
            self._groups[group_index].fused = module
            self._groups[group_index].fused_rows = fused_rows
        for group_index in frozenset[int]() if columns is None else columns.groups:
            self._groups[group_index].columns = columns
        for siblings in self._groups:
            for position, member in enumerate(siblings.members):
                member.module.forward = self._around(siblings, position, member.forward)

    def begin(self, active: bool) -> None:
        self.active = active
        if active:
            self._backend.lead_in()
        plans: Mapping[str, SitePlan] = self._side.plans if active else {}
        if self._experts is not None:
            inside = {name: plan.stages[Stage.INSIDE] for name, plan in plans.items() if Stage.INSIDE in plan.stages}
            self._experts.begin({self._modules[name]: terms.segments for name, terms in inside.items()})
        for name, plan in plans.items():
            if name in self._places:
                self._groups[self._places[name][0]].plans[name] = plan
            elif Stage.INSIDE not in plan.stages:
                self._hook(self._modules[name], plan)
        for source in {source for plan in plans.values() for source in plan.sources}:
            self._handles.append(self._modules[source].register_forward_pre_hook(self._keep(source), prepend=True))

    @property
    def in_calls(self) -> bool:
        """Whether the step's work is all inside what a compiled model calls (`callouts.py`)."""
        return not self._handles and all(group.keeps_widths for group in self._groups if group.plans)

    def end(self) -> None:
        """Keep none of the step's tensors alive, and none of its hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._streams.clear()
        if self._experts is not None:
            self._experts.end()
        for group in self._groups:
            group.forget()

    def _around(
        self, group: "Siblings", position: int, base: Callable[..., torch.Tensor]
    ) -> Callable[..., torch.Tensor]:
        def forward(*args: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            if is_traced():
                call = Call(group.members[position].name, self._whole, self._like_whole)
                return group.called_out(args[0], position, call)
            together = self.active or group.fuses(args[0])
            return group.output(args[0], position, self.active) if together else base(*args, **kwargs)

        return forward

    def _whole(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """All outputs, side by side, of the group that the named module is in."""
        return self._groups[self._places[name][0]].whole(x, self.active)

    def _like_whole(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._groups[self._places[name][0]].like_whole(x)

    def separate(self) -> None:
        """From now on every module has a product of its own."""
        for group in self._groups:
            group.fused = None
        if self._columns is not None:
            self._columns.turn_off()

    def room_behind(self, owner: Any) -> int:
        """Columns that are to be behind the input of a compiled model's call. owner: of the call."""
        place = self._places.get(owner) if isinstance(owner, str) else None
        return 0 if place is None or self._columns is None else self._columns.columns_of(place[0])

    def _hook(self, module: nn.Module, plan: SitePlan) -> None:
        """Of a norm: nothing else is at a site and in no group."""

        def change_output(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            plan.after(_rows(args[0]), _rows(output), module.forward, self._streams)

        self._handles.append(module.register_forward_hook(change_output))

    def _keep(self, name: str) -> Callable[..., None]:
        def keep_input(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self._streams[name] = _rows(args[0])

        return keep_input


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """(rows, ..., width), or (rows,) ids: without the batch's dimension, where the model has one."""
    if not tensor.is_floating_point():
        return tensor.flatten()
    return tensor if tensor.dim() == 2 else tensor[0]
