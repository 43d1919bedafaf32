"""Finds the modules that adapters may change.

One traced forward pass says which modules see every token, and which of them read the same input tensor: those form
a group, and share one shrink. The hooks compare the tensor itself, so a group that was traced wrongly costs time and
never a wrong result.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftserve.adapters.sites import Site, SiteKind, SiteTable
from peftserve.kernels.layout import Group, Rows

from ..adapters.packing import SiteGroups
from .experts import expert_parameters, is_dispatched, is_experts
from .inner_linears import inner_linears


@dataclass(frozen=True)
class TracedSites:
    table: SiteTable
    groups: SiteGroups

    def rows(self) -> dict[str, Rows]:
        """Which rows of a step reach each site."""
        return {
            name: Rows.LOGITS if site.kind is SiteKind.HEAD else Rows.TOKENS for name, site in self.table.sites.items()
        }


@dataclass
class _Call:
    """One call of a candidate module in the traced pass. The input is kept so that its identity stays its own."""

    name: str
    module: nn.Module
    input: torch.Tensor


class SiteTracer:
    """Records calls of candidate modules in one forward pass of `num_tokens` tokens; used as a context."""

    def __init__(self, model: PreTrainedModel, num_tokens: int) -> None:
        self._model = model
        self._num_tokens = num_tokens
        self._calls: dict[str, _Call] = {}
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

    def _recorder(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if len(args) != 1 or kwargs or not isinstance(output, torch.Tensor):
                return
            rows = output.shape[1] if output.dim() > 2 else output.shape[0]
            whole = rows if _norm_width(module) is not None else output.shape[:-1].numel()
            if whole == self._num_tokens and args[0].dtype in (torch.int64, output.dtype):
                self._calls[name] = _Call(name, module, args[0])

        return record

    def _record_inner(self, module: nn.Module, x: torch.Tensor) -> None:
        if x.shape[:-1].numel() == self._num_tokens:
            self._calls[self._names[module]] = _Call(self._names[module], module, x)

    def _experts_recorder(self, name: str) -> Callable[..., None]:
        """Of modules called once with all tokens in order, and with each token's experts."""

        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            whole = len(args) == 3 and args[0].dim() == 2 and len(args[0]) == len(args[1]) == self._num_tokens
            if whole and is_dispatched(module):
                self._calls[name] = _Call(name, module, args[0])

        return record

    def result(self) -> TracedSites:
        head_module = self._model.get_output_embeddings()
        embedding = self._model.get_input_embeddings()
        # In the model's own order, in which PEFT walks over it: some of its methods draw from one generator on the way.
        called = (name for name, _ in self._model.named_modules() if name in self._calls)
        sites = {name: _site(self._calls[name], head_module) for name in called}
        tied = head_module is not None and getattr(embedding, "weight", None) is getattr(
            head_module, "weight", embedding
        )
        table = SiteTable(
            sites=sites,
            head=self._names.get(head_module) if head_module is not None else None,
            tied_head=self._names.get(embedding) if tied else None,
            other_modules=frozenset(name for name in self._names.values() if name and name not in sites),
        )
        return TracedSites(table, self._group(sites))

    def _group(self, sites: dict[str, Site]) -> SiteGroups:
        members: dict[tuple[int, SiteKind], list[Site]] = {}
        for name, call in self._calls.items():
            if sites[name].kind in (SiteKind.NORM, SiteKind.EXPERTS):
                continue
            members.setdefault((id(call.input), sites[name].kind), []).append(sites[name])
        groups: list[Group] = []
        places: dict[str, tuple[int, int]] = {}
        for (_, kind), group in members.items():
            for shared in [[site] for site in group] if kind is SiteKind.EMBEDDING else [group]:
                places |= {site.name: (len(groups), i) for i, site in enumerate(shared)}
                groups.append(_as_group(shared))
        return SiteGroups(tuple(groups), places)


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of anything that is a linear: nn.Linear and quantised ones, transformers' Conv1D."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    width_in, width_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return (width_in, width_out) if isinstance(width_in, int) and isinstance(width_out, int) else None


def _norm_width(module: nn.Module) -> int | None:
    """Of a module with a vector of weights, such as LayerNorm and every RMSNorm; None for any other."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or _widths(module) is not None:
        return None
    return len(weight)


def _site(call: _Call, head: nn.Module | None) -> Site:
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


def _as_group(sites: list[Site]) -> Group:
    kind = sites[0].kind
    return Group(
        in_features=sites[0].in_features,
        out_features=tuple(site.out_features for site in sites),
        rows=Rows.LOGITS if kind is SiteKind.HEAD else Rows.TOKENS,
        gather=kind is SiteKind.EMBEDDING,
    )
