"""Adds the step's adapters to the base's modules, around their `forward` and through hooks: model code is untouched.

Modules that read one input are run together when the first of them is called, as one product where they can be
(`fused.py`), so that one call adds all of their bypasses; the others then find their outputs ready. Hooks of norms and
experts are on the model only in steps whose adapters need them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftserve.kernels.layout import BypassBackend
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
        fused: Mapping[int, nn.Linear] | None = None,
    ) -> None:
        """fused: of each group that has one, its modules as one."""
        self.active = False
        self._modules = modules
        self._side = side
        self._experts = experts
        self._streams: dict[str, torch.Tensor] = {}  # inputs of modules that another module's adapters read
        self._handles: list[Any] = []
        self._places = sites.places
        members: list[list[_Member]] = [[] for _ in sites.groups]
        for name, (group, position) in sorted(sites.places.items(), key=lambda item: item[1]):
            width = sites.groups[group].out_features[position]
            members[group].append(_Member(name, modules[name], modules[name].forward, width))
        self._groups = [_Siblings(backend, index, group, self._streams) for index, group in enumerate(members)]
        for group_index, module in (fused or {}).items():
            self._groups[group_index].fused = module
        for siblings in self._groups:
            for position, member in enumerate(siblings.members):
                member.module.forward = self._around(siblings, position, member.forward)

    def begin(self, active: bool) -> None:
        self.active = active
        plans: Mapping[str, SitePlan] = self._side.plans if active else {}
        if self._experts is not None:
            inside = {name: plan.phases[Phase.INSIDE] for name, plan in plans.items() if Phase.INSIDE in plan.phases}
            self._experts.parts = {self._modules[name]: terms.parts for name, terms in inside.items()}
        for name, plan in plans.items():
            if name in self._places:
                self._groups[self._places[name][0]].plans[name] = plan
            elif Phase.INSIDE not in plan.phases:
                self._hook(self._modules[name], plan)
        for source in {source for plan in plans.values() for source in plan.sources}:
            self._handles.append(self._modules[source].register_forward_pre_hook(self._keep(source), prepend=True))

    def end(self) -> None:
        """Keep none of the step's tensors alive, and none of its hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._streams.clear()
        if self._experts is not None:
            self._experts.parts = {}
        for group in self._groups:
            group.forget()

    def _around(
        self, group: "_Siblings", position: int, base: Callable[..., torch.Tensor]
    ) -> Callable[..., torch.Tensor]:
        def forward(*args: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            together = self.active or group.fused is not None
            return group.output(args[0], position, self.active) if together else base(*args, **kwargs)

        return forward

    def separate(self) -> None:
        """From now on every module has a product of its own."""
        for group in self._groups:
            group.fused = None

    def _hook(self, module: nn.Module, plan: SitePlan) -> None:
        """Of a norm: nothing else is at a site and in no group."""

        def change_output(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            plan.after_(_rows(args[0]), _rows(output), self._streams)

        self._handles.append(module.register_forward_hook(change_output))

    def _keep(self, name: str) -> Callable[..., None]:
        def keep_input(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self._streams[name] = _rows(args[0])

        return keep_input


@dataclass(frozen=True)
class _Member:
    """One module of a group. forward: the base's own. width: of its output, without what a larger vocabulary adds."""

    name: str
    module: nn.Module
    forward: Callable[..., torch.Tensor]
    width: int

    def run(
        self,
        x: torch.Tensor,
        plan: SitePlan | None,
        streams: Mapping[str, torch.Tensor],
        output: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The base's output, with all that the step adds to it but the low-rank bypasses.

        output: the base's for x itself, where it is there already.
        """
        if output is None:
            output = self.forward(x if plan is None else self._seen(x, plan))
        if plan is None:
            return output
        output = plan.widened(output)
        plan.after_(_rows(x), _rows(output), streams)
        return output

    def _seen(self, x: torch.Tensor, plan: SitePlan) -> torch.Tensor:
        """What the base is to see."""
        if x.is_floating_point():
            return plan.before(_rows(x)).view_as(x)
        ids: int = self.module.num_embeddings  # type: ignore[assignment]
        return x.clamp(max=ids - 1)  # those of a larger vocabulary are replaced behind the base


class _Siblings:
    """The modules of one group, which read one input.

    plans: those of the step, by the module's name; filled by the hooks.
    fused: all modules as one; None where they have products of their own.
    """

    def __init__(
        self, backend: BypassBackend, index: int, members: Sequence[_Member], streams: Mapping[str, torch.Tensor]
    ) -> None:
        self.members = members
        self.fused: nn.Linear | None = None
        self.plans: dict[str, SitePlan] = {}
        self._backend = backend
        self._index = index
        self._streams = streams
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor | None] = [None] * len(members)

    def output(self, x: torch.Tensor, position: int, active: bool) -> torch.Tensor:
        """Handed out once: whoever gets it may change it. active: with the step's bypasses."""
        if x is not self._input:
            self._input = x
            self._outputs = self._run(x, self._together(position), active)
        output = self._outputs[position]
        if output is None:
            (output,) = (y for y in self._run(x, {position}, active) if y is not None)
        self._outputs[position] = None
        return output

    def forget(self) -> None:
        self._input = None
        self._outputs = [None] * len(self.members)
        self.plans.clear()

    def _together(self, position: int) -> set[int]:
        """The modules to run when the one at `position` is called: those that need another's input wait for it."""
        waiting = any(plan.sources for plan in self.plans.values())
        return {position} if waiting else set(range(len(self.members)))

    def _run(self, x: torch.Tensor, positions: set[int], active: bool) -> list[torch.Tensor | None]:
        base = self._base(x, positions)
        outputs = [
            member.run(x, self.plans.get(member.name), self._streams, base[position]) if position in positions else None
            for position, member in enumerate(self.members)
        ]
        if not active:
            return outputs
        sites = [
            None if y is None else y.view(-1, y.shape[-1])[:, : member.width]
            for y, member in zip(outputs, self.members, strict=True)
        ]
        self._backend.add_(self._index, x.flatten(0, -2) if x.is_floating_point() else x.flatten(), sites)
        return outputs

    def _base(self, x: torch.Tensor, positions: set[int]) -> Sequence[torch.Tensor | None]:
        """All outputs by one product, unless a module sees another input or only some of them are asked for."""
        changed = any(Phase.INPUT in plan.phases for plan in self.plans.values())
        if self.fused is None or changed or len(positions) < len(self.members):
            return [None] * len(self.members)
        whole: torch.Tensor = self.fused(x)
        parts: tuple[torch.Tensor, ...] = whole.split([member.width for member in self.members], dim=-1)
        return parts


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """(rows, ..., width), or (rows,) ids: without the batch's dimension, where the model has one."""
    if not tensor.is_floating_point():
        return tensor.flatten()
    return tensor if tensor.dim() == 2 else tensor[0]
