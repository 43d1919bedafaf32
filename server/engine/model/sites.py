"""Find the modules that adapters may change.

Two traced forward passes say which modules see every token of a step, which see only the rows whose logits are wanted,
and which of them read the same input tensor: those form a group, and share one shrink. What sees neither is no site.
The hooks compare the tensor itself, so a group that was traced wrongly costs time and never a wrong result.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from peftserve.adapters.sites import Site, SiteKind, SiteTable
from peftserve.kernels.bypass.layout import Group, RowSet

from ..adapters.packing import SiteGroups
from ..private.transformers_private import Conv1D
from .experts import expert_parameters, is_swapped, is_transposed, keeps_experts, tokens_of
from .inner_linears import inner_linears
from .state.tracing import TracedStates
from .text_part import unread_modules
from .token_axes import token_axis, works_by_token

_ROUNDING = 0.05  # what two passes of other shapes may differ by in 16 bit, relative to the norm of what is compared


@dataclass(frozen=True)
class TracedSites:
    """All sites of one model, and their groups.

    logit_sites: those that see only the rows whose logits are wanted. token_axes: of norms, the axis of the tokens.
    """

    table: SiteTable
    groups: SiteGroups
    logit_sites: frozenset[str] = frozenset()
    token_axes: Mapping[str, int] = field(default_factory=dict)

    def rows(self) -> dict[str, RowSet]:
        """Map each site to the rows of a step that reach it."""
        return {name: RowSet.LOGITS if name in self.logit_sites else RowSet.TOKENS for name in self.table.sites}


@dataclass
class _TracedCall:
    """One call of a candidate module in a traced pass.

    input: kept alive, since modules whose inputs are one tensor form a group, and a freed tensor's id is used again.
    rows: that the module was called with; None for a call that no hook could serve. axis: of the tokens, of a norm.
    """

    name: str
    module: nn.Module
    input: torch.Tensor
    rows: int | None
    axis: int = 0


_Pass = dict[str, list[_TracedCall]]


class SiteTracer:
    """Records calls of candidate modules in forward passes over the same `num_tokens` tokens; used as a context.

    The first pass gives the logits of all tokens. `keep` begins a second one, of some of them.
    """

    def __init__(self, model: PreTrainedModel, num_tokens: int, states: TracedStates | None = None) -> None:
        """states: of the model. Inside modules that keep some, which run in parts, only linears and norms are sites."""
        self._states = states or TracedStates()
        self._model = model
        self._num_tokens = num_tokens
        self._passes: list[_Pass] = [{}]
        self._kept: torch.Tensor | None = None
        self._recorders = ExitStack()
        self._names = {module: name for name, module in model.named_modules()}
        self._uncalled = {name for name, module in model.named_modules() if isinstance(module, nn.Conv1d)}

    def __enter__(self) -> "SiteTracer":
        for name, module in self._model.named_modules():
            if name in self._uncalled:
                handle = module.register_forward_pre_hook(lambda *_, name=name: self._uncalled.discard(name))
                self._recorders.callback(handle.remove)
            if name in self._states.norms:
                self._recorders.callback(module.register_forward_hook(self._inner_norm_recorder(name)).remove)
                continue
            if self._states.inside(name) and _widths(module) is None:
                continue
            if isinstance(module, nn.Embedding) or _widths(module) is not None or _norm_shape(module) is not None:
                handle = module.register_forward_hook(self._recorder(name), with_kwargs=True)
                self._recorders.callback(handle.remove)
            elif keeps_experts(module):
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

    def _record(self, name: str, module: nn.Module, x: torch.Tensor, rows: int | None, axis: int = 0) -> None:
        self._passes[-1].setdefault(name, []).append(_TracedCall(name, module, x, rows, axis))

    def _recorder(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            plain = len(args) == 1 and not kwargs and isinstance(output, torch.Tensor)
            if not plain or args[0].dtype not in (torch.int64, output.dtype):
                if len(_norm_shape(module) or ()) < 2:  # else it may be no norm, but make a product by itself
                    self._record(name, module, torch.empty(0), None)
                return
            if _norm_shape(module) is None:
                self._record(name, module, args[0], output.shape[:-1].numel())
            elif args[0].shape == output.shape and _fits_norm(module, output.shape):
                self._record_norm(name, module, args[0])

        return record

    def _record_norm(self, name: str, module: nn.Module, x: torch.Tensor) -> None:
        """Record a norm, whose tokens may be on any axis. Of rows whose logits are wanted they are before the width."""
        axis = token_axis(x.shape, self._num_tokens)
        if axis is None and self._num_tokens in x.shape[:-1]:
            self._record(name, module, x, None)  # on one of two axes
        elif axis is None:
            self._record(name, module, x, x.shape[-2], x.dim() - 2)
        else:
            self._record(name, module, x, self._num_tokens if works_by_token(module, x, axis) else None, axis)

    def _inner_norm_recorder(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            width = output.shape[-1]
            self._record(name, module, args[0].reshape(self._num_tokens, -1, width), self._num_tokens)

        return record

    def _record_inner(self, module: nn.Module, x: torch.Tensor) -> None:
        self._record(self._names[module], module, x, x.shape[:-1].numel())

    def _experts_recorder(self, name: str) -> Callable[..., None]:
        """Return a hook for modules of experts, called once with all tokens in order and with each token's experts."""

        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._record(name, module, args[0], tokens_of(module, args))

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
        unread = unread_modules(self._model)
        others = frozenset(name for name in self._names.values() if name and name not in sites) - unread
        table = SiteTable(
            sites=sites,
            head=self._names.get(head_module) if head_module is not None else None,
            tied_head=self._names.get(embedding) if tied else None,
            other_modules=others,
            irregular=self._with_parameters_beside(sites) & others,
            matrices=frozenset(name for name, module in self._model.named_modules() if _is_matrix(module)) & others,
            embedding=self._names.get(embedding) if embedding is not None else None,
            unread=unread,
            uncalled=frozenset(self._uncalled) - unread,
        )
        axes = {name: calls[name].axis for name, site in sites.items() if site.kind is SiteKind.NORM}
        logit_sites = frozenset(name for name, seen in rows.items() if seen is RowSet.LOGITS)
        return TracedSites(table, self._group(sites, rows), logit_sites, axes)

    def _with_parameters_beside(self, sites: Mapping[str, Site]) -> frozenset[str]:
        """Return the names of the modules with parameters of their own that are no site's."""
        modules = dict(self._model.named_modules())
        known = {parameter for name in sites for parameter in modules[name].parameters(recurse=False)}
        return frozenset(name for name, m in modules.items() if not known.issuperset(m.parameters(recurse=False)))

    def _rows(self, name: str) -> RowSet | None:
        """Return which rows of a step the module of this name sees, whenever it is called; None if it is no site."""
        whole, last = self._passes[0].get(name, []), self._passes[-1].get(name, [])
        if not whole or len(whole) != len(last) or {call.rows for call in whole} != {self._num_tokens}:
            return None
        if len({call.axis for call in (*whole, *last)}) > 1:
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


def _norm_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of the weight of what may be a norm: a vector, or a matrix of heads; None of anything else."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() not in (1, 2) or _is_matrix(module):
        return None
    return tuple(weight.shape)


def _fits_norm(module: nn.Module, shape: torch.Size) -> bool:
    """Return whether a module's weight multiplies the last axes of an output of that shape."""
    own = _norm_shape(module)
    return own is not None and tuple(shape[-len(own) :]) == own


def _site(call: _TracedCall, head: nn.Module | None) -> Site:
    if isinstance(call.module, nn.Embedding):
        scale = float(getattr(call.module, "embed_scale", 1.0))
        return Site(call.name, SiteKind.EMBEDDING, call.module.num_embeddings, call.module.embedding_dim, scale)
    if keeps_experts(call.module):
        width, transposed, swapped = call.input.shape[-1], is_transposed(call.module), is_swapped(call.module)
        parameters = expert_parameters(call.module)
        return Site(call.name, SiteKind.EXPERTS, width, width, 1.0, transposed, parameters, swapped=swapped)
    shape = _norm_shape(call.module)
    if shape is not None and _fits_norm(call.module, call.input.shape):
        return Site(call.name, SiteKind.NORM, shape[-1], shape[-1], heads=shape[0] if len(shape) > 1 else 0)
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
