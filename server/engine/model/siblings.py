"""Modules that read one input, run together: by one product where possible, with one call that adds all their bypasses.

The first of them that is called runs them all; the others then find their outputs ready. That the input is the same is
seen by the tensor's identity at each call: a group that was traced wrongly costs time, and never a wrong result.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from peftserve.kernels.bypass.columns.spare import SpareColumns
from peftserve.kernels.bypass.layout import BypassBackend
from peftserve.kernels.ops.formulas import Stage
from peftserve.kernels.ops.site_plan import SitePlan

from .callouts import Call, call_out
from .wrapped_module import WrappedModule, flat_rows


class Siblings:
    """The modules of one group, which read one input.

    plans: the step's, by the module's name; filled by the hooks.
    fused: all modules as one linear, for up to `fused_rows` rows; None if each has a product of its own.
    columns: spare ones behind the modules' weights; None without any.
    dtype: of the adapters' tensors, in which the backend works; None for that of every input.
    """

    def __init__(
        self,
        backend: BypassBackend,
        index: int,
        members: Sequence[WrappedModule],
        streams: Mapping[str, torch.Tensor],
        in_features: int,
    ) -> None:
        self.members = members
        self.fused: nn.Linear | None = None
        self.fused_rows: int | None = None
        self.columns: SpareColumns | None = None
        self.dtype: torch.dtype | None = None
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
        """Return whether the step's plans leave all outputs as wide as the base's."""
        return all(self.plans[m.name].width <= m.width for m in self.members if m.name in self.plans)

    def fuses(self, x: torch.Tensor) -> bool:
        """Return whether one product gives the base's outputs for such an input."""
        few = self.fused_rows is None or x.numel() // x.shape[-1] <= self.fused_rows
        return self.fused is not None and few

    def called_out(self, x: torch.Tensor, position: int, call: Call) -> torch.Tensor:
        """Return the output of one module while the model is traced: the trace has one call, of `whole`, for all."""
        if x is not self._input or self._outputs[position] is None:
            self._input = x
            whole = call_out(call, x)
            self._outputs = [*whole.split(self._widths, dim=-1)] if len(self._widths) > 1 else [whole]
        return self._hand_out(position)

    def output(self, x: torch.Tensor, position: int, active: bool) -> torch.Tensor:
        """Return the output of the module at `position`. active: with the step's bypasses.

        It is handed out once, because the caller may change it: the module called again on the same input runs again.
        """
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
        """End the step: drop its tensors and plans."""
        self._input = None
        self._outputs = [None] * len(self.members)
        self.plans.clear()

    def _together(self, position: int) -> frozenset[int]:
        """Return the positions of the modules to run when the one at `position` is called.

        All of them, unless one reads the input of a module outside the group, which may be called later.
        """
        waiting = any(plan.sources for plan in self.plans.values())
        return frozenset({position}) if waiting else self._everyone

    def _run(
        self, x: torch.Tensor, positions: frozenset[int], active: bool, whole: torch.Tensor | None
    ) -> list[torch.Tensor | None]:
        """Run the modules at some positions. Returns an output for each of these, None for the others.

        whole: the base's outputs side by side, if known; changed in place then.
        """
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
        """Add the low-rank bypasses. sites: (rows, out_features) by module, changed in place; None: leave it alone."""
        if self._all_in_columns:
            return
        rows = flat_rows(x)
        if self._is_foreign(rows):
            self._add_in_own_type(rows, sites)
            return
        if rows.is_floating_point() or not self.plans:
            self._backend.add_(self._index, rows, sites)
            return
        # A larger vocabulary in the step: no factors have a row for ids that the base does not know.
        (member,), (y,) = self.members, sites
        assert y is not None
        known, before = member.knows(rows)[:, None], y.clone()
        self._backend.add_(self._index, rows.clamp(max=member.ids - 1), [y])
        y.copy_(torch.where(known, y, before))

    def _is_foreign(self, rows: torch.Tensor) -> bool:
        """Return whether an input is of another type than the factors, as a router's is that works in float32."""
        return self.dtype is not None and rows.is_floating_point() and rows.dtype != self.dtype

    def _add_in_own_type(self, rows: torch.Tensor, sites: Sequence[torch.Tensor | None]) -> None:
        """Add the bypasses by way of the factors' type. Rows without any stay as they are, to the bit."""
        before = [None if y is None else y.to(self.dtype) for y in sites]
        after = [None if y is None else y.clone() for y in before]
        self._backend.add_(self._index, rows.to(self.dtype), after)
        for y, old, new in zip(sites, before, after, strict=True):
            if y is not None and old is not None and new is not None:
                y += new.to(y.dtype) - old.to(y.dtype)

    def _start(self, x: torch.Tensor, active: bool) -> None:
        """Start what the backend of the bypasses can run beside the base's products of the same input."""
        if active and not self.plans and not self._all_in_columns and not self._is_foreign(x):
            self._backend.start(self._index, flat_rows(x))

    @property
    def _all_in_columns(self) -> bool:
        """Return whether the base's product gives all bypasses of the step, by its spare columns."""
        return self.columns is not None and self.columns.whole

    @property
    def _in_columns(self) -> bool:
        """Return whether it gives some of them."""
        return self.columns is not None and self.columns.active

    def _product(self, x: torch.Tensor, active: bool) -> torch.Tensor | None:
        """Return the base's outputs side by side; None if they have no common product, or a plan changes an input.

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
        """Return an input without the spare columns behind it."""
        return x[..., : self._in_features] if x.is_floating_point() and x.shape[-1] > self._in_features else x

    def _bias(self) -> torch.Tensor | None:
        linear = self.members[0].module if self.fused is None else self.fused
        bias: torch.Tensor | None = linear.bias  # type: ignore[assignment]
        return bias

    def whole(self, x: torch.Tensor, active: bool) -> torch.Tensor:
        """Return all outputs side by side. The step's plans must keep their widths. active: with the step's bypasses.

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
        """Return an empty tensor like the result of `whole`."""
        if x.is_floating_point():
            return x.new_empty(*x.shape[:-1], sum(self._widths))
        return x.new_empty(*x.shape, sum(self._widths), dtype=next(self.members[0].module.parameters()).dtype)
