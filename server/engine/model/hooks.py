"""Adds the step's adapters to the base's modules, through forward hooks: model code is untouched.

Hooks that change a module's input, and those of norms, are on the model only in steps whose adapters need them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from peftserve.kernels.layout import BypassBackend, Shrunk
from peftserve.kernels.ops import Phase
from peftserve.kernels.side import SideOps, SitePlan

from ..adapters.packing import SiteGroups
from .experts import ExpertsBypass


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
    ) -> None:
        self.active = False
        self._modules = modules
        self._side = side
        self._experts = experts
        self._plans: Mapping[str, SitePlan] = {}
        self._inputs: dict[str, torch.Tensor] = {}  # what the base itself would have seen, where it sees another
        self._streams: dict[str, torch.Tensor] = {}  # inputs of modules that another module's adapters read
        self._handles: list[Any] = []
        self._places = sites.places
        self._groups = [_GroupInput(backend, index) for index in range(len(sites.groups))]
        for name, (group, position) in sites.places.items():
            width = sites.groups[group].out_features[position]
            modules[name].register_forward_hook(self._hook(name, backend, self._groups[group], position, width))

    def begin(self, active: bool) -> None:
        self.active = active
        self._plans = self._side.plans if active else {}
        if self._experts is not None:
            inside = {
                name: plan.phases[Phase.INSIDE] for name, plan in self._plans.items() if Phase.INSIDE in plan.phases
            }
            self._experts.parts = {self._modules[name]: terms.parts for name, terms in inside.items()}
        for name, plan in self._plans.items():
            if Phase.INSIDE in plan.phases:
                continue  # nothing else can be at a mixture's experts
            if Phase.INPUT in plan.phases or Phase.REPLACE in plan.phases:
                self._handles.append(self._modules[name].register_forward_pre_hook(self._before(name, plan)))
            if name not in self._places:
                self._handles.append(self._modules[name].register_forward_hook(self._after(plan)))
        for source in {source for plan in self._plans.values() for source in plan.sources}:
            self._handles.append(self._modules[source].register_forward_pre_hook(self._keep(source), prepend=True))

    def end(self) -> None:
        """Keep none of the step's tensors alive, and none of its hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inputs.clear()
        self._streams.clear()
        if self._experts is not None:
            self._experts.parts = {}
        for group in self._groups:
            group.forget()

    def _hook(
        self, name: str, backend: BypassBackend, group: "_GroupInput", position: int, width: int
    ) -> Callable[..., torch.Tensor | None]:
        def add_bypass(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if not self.active:
                return None
            x = self._inputs.get(name, args[0])
            if (plan := self._plans.get(name)) is not None:
                output = plan.widened(output)
                plan.after_(_rows(x), _rows(output), self._streams)
            if (shrunk := group.shrink(x)) is not None:
                backend.expand_(shrunk, position, output.view(-1, output.shape[-1])[:, :width])
            return output if plan is not None else None

        return add_bypass

    def _before(self, name: str, plan: SitePlan) -> Callable[..., tuple[torch.Tensor, ...]]:
        ids = getattr(self._modules[name], "num_embeddings", 0)

        def change_input(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x = self._inputs[name] = args[0]
            if not x.is_floating_point():
                return (x.clamp(max=ids - 1), *args[1:])  # those of a larger vocabulary are replaced behind the base
            return (plan.before(_rows(x)).view_as(x), *args[1:])

        return change_input

    def _after(self, plan: SitePlan) -> Callable[..., None]:
        def change_output(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            plan.after_(_rows(args[0]), _rows(output), self._streams)

        return change_output

    def _keep(self, name: str) -> Callable[..., None]:
        def keep_input(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self._streams[name] = _rows(args[0])

        return keep_input


class _GroupInput:
    """The last input of a group, and its shrink."""

    def __init__(self, backend: BypassBackend, index: int) -> None:
        self._backend = backend
        self._index = index
        self._input: torch.Tensor | None = None
        self._shrunk: Shrunk | None = None

    def shrink(self, x: torch.Tensor) -> Shrunk | None:
        if x is not self._input:
            self._input = x
            self._shrunk = self._backend.shrink(self._index, x.flatten() if _is_ids(x) else x.flatten(0, -2))
        return self._shrunk

    def forget(self) -> None:
        self._input = self._shrunk = None


def _is_ids(x: torch.Tensor) -> bool:
    return not x.is_floating_point()


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """(rows, ..., width), or (rows,) ids: without the batch's dimension, where the model has one."""
    return tensor.flatten() if _is_ids(tensor) else tensor if tensor.dim() == 2 else tensor[0]
