"""Add the step's adapters to the base's modules, around their `forward` and through hooks: model code is untouched.

Modules that read one input are run together (`siblings.py`). Hooks of norms, and of modules whose input another one
reads, are on the model only in steps whose adapters need them: a hook costs a call of Python in every layer.
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
from .siblings import Siblings
from .state.joining import Joint
from .token_axes import token_rows
from .wrapped_module import WrappedModule, flat_rows, side_by_side


class BypassHooks:
    """The wrapped modules of one model.

    The runner calls `begin` when the step's work is set, and `end` when it has run.

    active: whether the step has adapters.
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
        joint: Joint | None = None,
        token_axes: Mapping[str, int] | None = None,
        inner_norms: Mapping[str, int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Wrap the `forward` of every module in a group of `sites`, for good.

        fused: by group, its linears as one, used for inputs of up to `fused_rows` rows; None for any. columns: spare
        ones behind weights, by which the base's own products add some bypasses. joint: where calls from within modules
        that run a step in parts are made for all of its rows. token_axes: of norms, the axis of the tokens.
        inner_norms: norms within such modules, with the number of tensors that they are given. dtype: of the adapters'
        tensors; None for that of every input.
        """
        self.active = False
        self._backend = backend
        self._modules = modules
        self._side = side
        self._experts = experts
        self._columns = columns
        self._joint = joint or Joint()
        self._token_axes = token_axes or {}
        self._inner_norms = inner_norms or {}
        self._streams: dict[str, torch.Tensor] = {}  # inputs of modules that another module's adapters read
        self._sources = frozenset[str]()  # the names of these modules
        self._handles: list[Any] = []
        self._places = sites.places
        members: list[list[WrappedModule]] = [[] for _ in sites.groups]
        for name, (group, position) in sorted(sites.places.items(), key=lambda item: item[1]):
            width = sites.groups[group].out_features[position]
            members[group].append(WrappedModule(name, modules[name], modules[name].forward, width))
        self._groups = [
            Siblings(backend, index, group, self._streams, sites.groups[index].in_features)
            for index, group in enumerate(members)
        ]
        for siblings in self._groups:
            siblings.dtype = dtype
        for group_index, module in (fused or {}).items():
            self._groups[group_index].fused = module
            self._groups[group_index].fused_rows = fused_rows
        for group_index in frozenset[int]() if columns is None else columns.groups:
            self._groups[group_index].columns = columns
        for siblings in self._groups:
            for position, member in enumerate(siblings.members):
                member.module.forward = self._around(siblings, position, member.forward)

    def begin(self, active: bool) -> None:
        """Hand the step's plans to the groups, and put the hooks on the model that this step needs."""
        self.active = active
        if active:
            self._backend.lead_in()
        plans: Mapping[str, SitePlan] = self._side.plans if active else {}
        if self._experts is not None:
            # Terms inside a module cannot be added to its output: the function that computes the experts adds them.
            inside = {name: plan.stages[Stage.INSIDE] for name, plan in plans.items() if Stage.INSIDE in plan.stages}
            self._experts.begin({self._modules[name]: terms.segments for name, terms in inside.items()})
        for name, plan in plans.items():
            if name in self._places:
                self._groups[self._places[name][0]].plans[name] = plan
            elif Stage.INSIDE not in plan.stages:
                self._hook(name, plan)
        self._sources = frozenset[str]().union(*(plan.sources for plan in plans.values()))
        for source in self._sources - self._places.keys():
            # Prepended: the input as the module is given it, before any hook of its own changes it.
            self._handles.append(self._modules[source].register_forward_pre_hook(self._keep(source), prepend=True))

    @property
    def fits_compiled(self) -> bool:
        """Return whether all of the step's work is inside the calls of a compiled model (`callouts.py`).

        Hooks would not run, and the shapes of outputs are compiled in.
        """
        return not (self._handles or self._sources) and all(group.keeps_widths for group in self._groups if group.plans)

    def end(self) -> None:
        """Take the step's hooks off, and keep none of its tensors alive."""
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
                # The trace is for all steps, so it must not look at the adapters of one: the call does, in each step.
                call = Call(group.members[position].name, self._whole, self._like_whole)
                return group.called_out(args[0], position, call)
            if self._joint.active:
                name = group.members[position].name
                return self._joint.call(name, lambda x: self._one(group, position, x), args[0])
            if self.active or group.fuses(args[0]):
                return self._one(group, position, args[0])
            return base(*args, **kwargs)

        return forward

    def _one(self, group: "Siblings", position: int, x: torch.Tensor) -> torch.Tensor:
        """Return one module's output for all rows of a step."""
        if (name := group.members[position].name) in self._sources:
            self._streams[name] = flat_rows(x)
        if self.active or group.fuses(x):
            return group.output(x, position, self.active)
        return group.members[position].forward(x)

    def _whole(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return all outputs, side by side, of the group that the named module is in."""
        return self._groups[self._places[name][0]].whole(x, self.active)

    def _like_whole(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._groups[self._places[name][0]].like_whole(x)

    def separate(self) -> None:
        """Give every module a product of its own from now on, and turn spare columns off."""
        for group in self._groups:
            group.fused = None
        if self._columns is not None:
            self._columns.turn_off()

    def room_behind(self, owner: Any) -> int:
        """Return how many spare columns are to be behind the input of a compiled model's call. owner: the call's."""
        place = self._places.get(owner) if isinstance(owner, str) else None
        return 0 if place is None or self._columns is None else self._columns.columns_of(place[0])

    def _hook(self, name: str, plan: SitePlan) -> None:
        """Put a plan behind a module for this step: a norm, as other sites are in groups, or have their work inside."""
        if name in self._inner_norms:
            self._hook_inside(name, plan)
            return
        axis = self._token_axes.get(name)

        def rows_of(tensor: torch.Tensor) -> torch.Tensor:
            return _rows(tensor) if axis is None else token_rows(tensor, axis)

        def change_output(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            # The plan may call the base again on some rows, by `forward`: a call of the module would run this hook.
            plan.after(rows_of(args[0]), rows_of(output), module.forward, self._streams)

        self._handles.append(self._modules[name].register_forward_hook(change_output))

    def _hook_inside(self, name: str, plan: SitePlan) -> None:
        """Put a plan behind a norm that runs in parts: its inputs, side by side, are the input of its primitives."""

        def change_output(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            def whole(*tensors: torch.Tensor) -> torch.Tensor:
                *inputs, y = (tensor[0] for tensor in tensors)
                run = side_by_side(module.forward, len(inputs))
                return plan.after(torch.cat(inputs, -1), y.clone(), run, self._streams)[None]

            return self._joint.call_by_rows(name, whole, *args, output)

        self._handles.append(self._modules[name].register_forward_hook(change_output))

    def _keep(self, name: str) -> Callable[..., None]:
        def keep_input(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self._streams[name] = _rows(args[0])

        return keep_input


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Drop the dimension of the batch, where the model has one. Returns (rows, ..., width), or (rows,) ids."""
    if not tensor.is_floating_point():
        return tensor.flatten()
    return tensor if tensor.dim() == 2 else tensor[0]
