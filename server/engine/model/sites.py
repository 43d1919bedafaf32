"""Find the modules that adapters may change.

Two traced forward passes say which modules see every token of a step, which see only the rows whose logits are wanted,
and which of them read the same input tensor: those form a group, and share one shrink. What sees neither is no site.
The hooks compare the tensor itself, so a group that was traced wrongly costs time and never a wrong result.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from peftserve.adapters.sites import Site, SiteKind, SiteTable
from peftserve.kernels.bypass.layout import Group, RowSet

from ..adapters.packing import SiteGroups
from ..private.transformers_private import Conv1D, is_experts
from .experts import expert_parameters, is_dispatched
from .inner_linears import inner_linears

_ROUNDING = 0.05  # what two passes of other shapes may differ by in 16 bit, relative to the norm of what is compared


@dataclass(frozen=True)
class TracedSites:
    """All sites of one model, and their groups. logit_sites: those that see only the rows whose logits are wanted."""

    table: SiteTable
    groups: SiteGroups
    logit_sites: frozenset[str] = frozenset()

    def rows(self) -> dict[str, RowSet]:
        """Map each site to the rows of a step that reach it."""
        return {name: RowSet.LOGITS if name in self.logit_sites else RowSet.TOKENS for name in self.table.sites}


@dataclass
class _TracedCall:
    """One call of a candidate module in a traced pass.

    input: kept alive, since modules whose inputs are one tensor form a group, and a freed tensor's id is used again.
    rows: that the module was called with; None for a call that no hook could serve.
    """

    name: str
    module: nn.Module
    input: torch.Tensor
    rows: int | None


_Pass = dict[str, list[_TracedCall]]


class SiteTracer:
    """Records calls of candidate modules in forward passes over the same `num_tokens` tokens; used as a context.

    The first pass gives the logits of all tokens. `keep` begins a second one, of some of them.
    """

    def __init__(self, model: PreTrainedModel, num_tokens: int) -> None:
        self._model = model
        self._num_tokens = num_tokens
        self._passes: list[_Pass] = [{}]
        self._kept: torch.Tensor | None = None
        self._recorders = ExitStack()
        self._names = {module: name for name, module in model.named_modules()}

    def __enter__(self) -> "SiteTracer":
        for name, module in self._model.named_modules():
            if isinstance(module, nn.Embedding) or _widths(module) is not None or _norm_width(module) is not None:
                handle = module.register_forward_hook(self._recorder(name), with_kwargs=True)
                self._recorders.callback(handle.remove)
            elif is_experts(module):
                handle = module.register_forward_hook(self._experts_recorder(name))
                self._recorders.callback(handle.remove)
        self._recorders.enter_context(inner_linears(self._model.modules(), self._record_inner))
        return self

    def __exit__(self, *_: object) -> None:
        self._recorders.close()

    def keep(self, rows: torch.Tensor) -> None:
        """Begin the second pass, of which only these rows' logits are asked for. rows: int64, fewer than all."""
        self._kept = rows
        self._passes.append({})

    def _record(self, name: str, module: nn.Module, x: torch.Tensor, rows: int | None) -> None:
        self._passes[-1].setdefault(name, []).append(_TracedCall(name, module, x, rows))

    def _recorder(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            plain = len(args) == 1 and not kwargs and isinstance(output, torch.Tensor)
            if not plain or args[0].dtype not in (torch.int64, output.dtype):
                self._record(name, module, torch.empty(0), None)
                return
            rows = output.shape[1] if output.dim() > 2 else output.shape[0]
            self._record(name, module, args[0], rows if _norm_width(module) is not None else output.shape[:-1].numel())

        return record

    def _record_inner(self, module: nn.Module, x: torch.Tensor) -> None:
        self._record(self._names[module], module, x, x.shape[:-1].numel())

    def _experts_recorder(self, name: str) -> Callable[..., None]:
        """Return a hook for modules of experts, called once with all tokens in order and with each token's experts."""

        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            whole = len(args) == 3 and args[0].dim() == 2 and len(args[0]) == len(args[1]) and is_dispatched(module)
            self._record(name, module, args[0], len(args[0]) if whole else None)

        return record

    def result(self) -> TracedSites:
        """Return the sites, after both passes."""
        head_module = self._model.get_output_embeddings()
        embedding = self._model.get_input_embeddings()
        # In the model's own order, in which PEFT walks over it: some of its methods draw from one generator on the way.
        rows = {name: seen for name, _ in self._model.named_modules() if (seen := self._rows(name)) is not None}
        calls = {name: self._passes[-1][name][-1] for name in rows}
        sites = {name: _site(call, head_module) for name, call in calls.items()}
        tied = head_module is not None and getattr(embedding, "weight", None) is getattr(
            head_module, "weight", embedding
        )
        others = frozenset(name for name in self._names.values() if name and name not in sites)
        table = SiteTable(
            sites=sites,
            head=self._names.get(head_module) if head_module is not None else None,
            tied_head=self._names.get(embedding) if tied else None,
            other_modules=others,
            irregular=frozenset(name for name, module in self._model.named_modules() if _is_matrix(module)) & others,
        )
        logit_sites = frozenset(name for name, seen in rows.items() if seen is RowSet.LOGITS)
        return TracedSites(table, self._group(sites, rows), logit_sites)

    def _rows(self, name: str) -> RowSet | None:
        """Return which rows of a step the module of this name sees, whenever it is called; None if it is no site."""
        whole, last = self._passes[0].get(name, []), self._passes[-1].get(name, [])
        if not whole or len(whole) != len(last) or {call.rows for call in whole} != {self._num_tokens}:
            return None
        if {call.rows for call in last} == {self._num_tokens}:
            return RowSet.TOKENS
        pairs = zip(whole, last, strict=True)
        return RowSet.LOGITS if all(self._are_kept(call.input, some.input) for call, some in pairs) else None

    def _are_kept(self, whole: torch.Tensor, some: torch.Tensor) -> bool:
        """Return whether `some` are the kept rows of `whole`, in their order, up to rounding."""
        assert self._kept is not None
        wanted = whole.reshape(self._num_tokens, -1)[self._kept]
        if some.numel() != wanted.numel():
            return False
        difference = some.reshape(wanted.shape).float() - wanted.float()
        return bool(difference.norm() <= _ROUNDING * wanted.float().norm())

    def _group(self, sites: dict[str, Site], rows: dict[str, RowSet]) -> SiteGroups:
        members: dict[tuple[int, SiteKind, RowSet], list[Site]] = {}
        for name, calls in self._passes[-1].items():  # in the order of the calls
            if name in sites and sites[name].kind not in (SiteKind.NORM, SiteKind.EXPERTS):
                members.setdefault((id(calls[-1].input), sites[name].kind, rows[name]), []).append(sites[name])
        groups: list[Group] = []
        places: dict[str, tuple[int, int]] = {}
        for (_, kind, seen), group in members.items():
            for shared in [[site] for site in group] if kind is SiteKind.EMBEDDING else [group]:
                places |= {site.name: (len(groups), i) for i, site in enumerate(shared)}
                groups.append(_as_group(shared, seen))
        return SiteGroups(tuple(groups), places)


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) or _widths(module) is not None


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """Return (in, out) of any linear: nn.Linear and quantised ones, transformers' Conv1D; None of anything else."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    width_in, width_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (width_in, width_out) if isinstance(width_in, int) and isinstance(width_out, int) else None


def _norm_width(module: nn.Module) -> int | None:
    """Return the width of a module with a vector of weights, as LayerNorm and every RMSNorm; None of anything else."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or _widths(module) is not None:
        return None
    return len(weight)


def _site(call: _TracedCall, head: nn.Module | None) -> Site:
    if (width := _norm_width(call.module)) is not None:
        return Site(call.name, SiteKind.NORM, width, width)
    if isinstance(call.module, nn.Embedding):
        scale = float(getattr(call.module, "embed_scale", 1.0))
        return Site(call.name, SiteKind.EMBEDDING, call.module.num_embeddings, call.module.embedding_dim, scale)
    if is_experts(call.module):
        width, transposed = call.input.shape[-1], bool(call.module.is_transposed)
        parameters = expert_parameters(call.module)
        return Site(call.name, SiteKind.EXPERTS, width, width, transposed=transposed, parameters=parameters)
    if (widths := _widths(call.module)) is None:
        return Site(call.name, SiteKind.INNER, call.input.shape[-1], len(cast(torch.Tensor, call.module.weight)))
    kind = SiteKind.HEAD if call.module is head else SiteKind.LINEAR
    return Site(call.name, kind, *widths, transposed=isinstance(call.module, Conv1D))


def _as_group(sites: list[Site], rows: RowSet) -> Group:
    return Group(
        in_features=sites[0].in_features,
        out_features=tuple(site.out_features for site in sites),
        rows=rows,
        gather=sites[0].kind is SiteKind.EMBEDDING,
    )
