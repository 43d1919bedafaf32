"""Modules that read one input, run together: one product where that can be, and one call that adds all their bypasses.

The first of them that is called runs them all; the others then find their outputs ready.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from peftserve.kernels.bypass.columns.spare import SpareColumns
from peftserve.kernels.bypass.layout import BypassBackend
from peftserve.kernels.ops.formulas import Stage
from peftserve.kernels.ops.site_plan import SitePlan

from .callouts import Call, call_out


@dataclass(frozen=True)
class Member:
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
        if plan is None:
            return self.forward(x) if output is None else output
        rows = _flat(x)
        y = self._base(plan.before(rows), x) if output is None else output.view(-1, self.width)
        y = plan.after(rows, y, lambda some: self._base(some, x), streams)
        return y.view(*_leading(x), y.shape[-1])  # of no rows, if a step is all chunks of prompts: so no -1 here

    def _base(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """(rows, width) of the base for a linear's (rows, in_features) or an embedding's (rows,) ids.

        x: the input as the model gives it, whose number of dimensions the base may expect.
        """
        if x.is_floating_point():
            shaped = rows.view(*[1] * (x.dim() - 2), *rows.shape)
            return self.forward(shaped).flatten(0, -2)
        known, shaped = self.knows(rows), rows.view(*[1] * (x.dim() - 1), -1)
        y = self.forward(shaped.clamp(max=self.ids - 1)).flatten(0, -2)
        return y.masked_fill_(~known[:, None], 0)

    @property
    def ids(self) -> int:
        """That an embedding has rows of. Those of a larger vocabulary are replaced behind the base."""
        count: int = self.module.num_embeddings  # type: ignore[assignment]
        return count

    def knows(self, ids: torch.Tensor) -> torch.Tensor:
        return ids < self.ids


class Siblings:
    """The modules of one group, which read one input.

    plans: those of the step, by the module's name; filled by the hooks.
    fused: all modules as one, for up to `fused_rows` rows; None where they have products of their own.
    columns: behind the modules' weights; None where there are none.
    """

    def __init__(
        self,
        backend: BypassBackend,
        index: int,
        members: Sequence[Member],
        streams: Mapping[str, torch.Tensor],
        in_features: int,
    ) -> None:
        self.members = members
        self.fused: nn.Linear | None = None
        self.fused_rows: int | None = None
        self.columns: SpareColumns | None = None
        self.plans: dict[str, SitePlan] = {}
        self._backend = backend
        self._index = index
        self._streams = streams
        self._in_features = in_features
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor | None] = [None] * len(members)
        self._widths = [member.width for member in members]
        self._everyone = frozenset(range(len(members)))

    @property
    def keeps_widths(self) -> bool:
        """Whether the step's plans leave all outputs as wide as the base's."""
        return all(self.plans[m.name].width <= m.width for m in self.members if m.name in self.plans)

    def fuses(self, x: torch.Tensor) -> bool:
        """Whether one product gives the base's outputs for such an input."""
        few = self.fused_rows is None or x.numel() // x.shape[-1] <= self.fused_rows
        return self.fused is not None and few

    def called_out(self, x: torch.Tensor, position: int, call: Call) -> torch.Tensor:
        """`output` in a compiled model, which makes one call, of `whole`, for all modules."""
        if x is not self._input or self._outputs[position] is None:
            self._input = x
            whole = call_out(call, x)
            self._outputs = [*whole.split(self._widths, dim=-1)] if len(self._widths) > 1 else [whole]
        return self._hand_out(position)

    def output(self, x: torch.Tensor, position: int, active: bool) -> torch.Tensor:
        """Handed out once: whoever gets it may change it. active: with the step's bypasses."""
        if x is not self._input:
            self._input = x
            together = self._together(position)
            if together == self._everyone:
                self._start(x, active)
            as_one = self.fuses(x) or (active and self._in_columns)
            whole = self._product(x, active) if as_one and together == self._everyone else None
            self._outputs = self._run(x, together, active, whole)
        if self._outputs[position] is None:
            self._outputs[position] = self._run(x, frozenset({position}), active, None)[position]
        return self._hand_out(position)

    def _hand_out(self, position: int) -> torch.Tensor:
        output, self._outputs[position] = self._outputs[position], None
        assert output is not None
        return output

    def forget(self) -> None:
        self._input = None
        self._outputs = [None] * len(self.members)
        self.plans.clear()

    def _together(self, position: int) -> frozenset[int]:
        """The modules to run when the one at `position` is called: those that need another's input wait for it."""
        waiting = any(plan.sources for plan in self.plans.values())
        return frozenset({position}) if waiting else self._everyone

    def _run(
        self, x: torch.Tensor, positions: frozenset[int], active: bool, whole: torch.Tensor | None
    ) -> list[torch.Tensor | None]:
        """whole: the base's outputs side by side, if they are there already; changed in place then."""
        base = [None] * len(self.members) if whole is None else whole.split(self._widths, dim=-1)
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
        self._add_bypasses(x, sites)
        return outputs

    def _add_bypasses(self, x: torch.Tensor, sites: Sequence[torch.Tensor | None]) -> None:
        """sites: (rows, out_features) of each module, changed in place; None for those to leave alone."""
        if self._all_in_columns:
            return
        rows = _flat(x)
        if rows.is_floating_point() or not self.plans:
            self._backend.add_(self._index, rows, sites)
            return
        # A larger vocabulary in the step: no factors have a row for ids that the base does not know.
        (member,), (y,) = self.members, sites
        assert y is not None
        known, before = member.knows(rows)[:, None], y.clone()
        self._backend.add_(self._index, rows.clamp(max=member.ids - 1), [y])
        y.copy_(torch.where(known, y, before))

    def _start(self, x: torch.Tensor, active: bool) -> None:
        """Of the bypasses, what may run beside the base's products of the same input."""
        if active and not self.plans and not self._all_in_columns:
            self._backend.start(self._index, _flat(x))

    @property
    def _all_in_columns(self) -> bool:
        """Whether this product gives all bypasses of the step's adapters."""
        return self.columns is not None and self.columns.whole

    @property
    def _in_columns(self) -> bool:
        """Whether it gives some of them."""
        return self.columns is not None and self.columns.active

    def _product(self, x: torch.Tensor, active: bool) -> torch.Tensor | None:
        """The base's outputs side by side; None without a product of all, or if a module is to see another input.

        active: with the bypasses that are in spare columns.
        """
        if active and self.columns is not None and self.columns.active:
            return self.columns.product(self._index, x, self._bias())
        x = self._own(x)
        if any(Stage.INPUT in plan.stages for plan in self.plans.values()):
            return None
        if len(self.members) == 1 and not self.plans:
            return self.members[0].forward(x)
        return None if self.fused is None else self.fused(x)

    def _own(self, x: torch.Tensor) -> torch.Tensor:
        """Without the columns behind it."""
        return x[..., : self._in_features] if x.is_floating_point() and x.shape[-1] > self._in_features else x

    def _bias(self) -> torch.Tensor | None:
        linear = self.members[0].module if self.fused is None else self.fused
        bias: torch.Tensor | None = linear.bias  # type: ignore[assignment]
        return bias

    def whole(self, x: torch.Tensor, active: bool) -> torch.Tensor:
        """All outputs side by side, of plans that keep their widths. active: with the step's bypasses.

        x: with spare columns behind it, or without.
        """
        own = self._own(x)
        self._start(own, active)
        whole = self._product(x, active)
        x = own
        if whole is not None and not self.plans:  # in as few calls as can be
            if active:
                self._add_bypasses(x, whole.flatten(0, -2).split(self._widths, 1))
            return whole
        outputs = self._run(x, self._everyone, active, whole)
        return torch.cat([y for y in outputs if y is not None], -1) if whole is None else whole

    def like_whole(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_floating_point():
            return x.new_empty(*x.shape[:-1], sum(self._widths))
        return x.new_empty(*x.shape, sum(self._widths), dtype=next(self.members[0].module.parameters()).dtype)


def _flat(x: torch.Tensor) -> torch.Tensor:
    """A linear's input as (rows, width), an embedding's as (rows,) ids."""
    return x.flatten(0, -2) if x.is_floating_point() else x.flatten()


def _leading(x: torch.Tensor) -> torch.Size:
    """Of the output, all dimensions but the width."""
    return x.shape[:-1] if x.is_floating_point() else x.shape
