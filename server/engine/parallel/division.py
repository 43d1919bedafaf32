"""A loaded base made this rank's part of it: weights cut, and sums and vocabularies joined by the ranks.

The whole model has been loaded, traced and compared before. Its weights are views of the checkpoint's file, which the
ranks of a machine share and whose memory the system takes back when it needs it. The twin keeps them, so that compilers
of adapters go on to read the whole base. What the model computes with are copies of this rank's part.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from peftserve.adapters.sites import Site, SiteKind
from peftserve.kernels.bypass.layout import Group

from ..adapters.packing import SiteGroups
from ..model.errors import UnservableModel
from ..model.experts import keeps_experts
from ..model.loading import LoadedModel
from .bypass import BypassCutter
from .cuts import Cut, by_heads, even
from .group import RankGroup
from .plan import Plan, plan_cuts

_OF_HEADS = ("num_attention_heads", "num_heads", "num_key_value_heads")


@dataclass(frozen=True)
class Division:
    """A rank's part of a base. cutter: makes the same part of adapters."""

    loaded: LoadedModel
    cutter: BypassCutter
    plan: Plan


def divide(loaded: LoadedModel, group: RankGroup, device: torch.device, max_dense_delta: int) -> Division:
    """Return this rank's part of a base, on its device. Raises UnservableModel with what cannot be divided."""
    _check(loaded)
    whole = dict(loaded.attention.layers)
    plan = plan_cuts(loaded.model, whole, group.size)
    heads = {
        index: (by_heads(layer.kv_heads, 1, group.size, f"layer {index}")[group.rank], layer.kv_heads)
        for index, layer in whole.items()
    }
    parameters = _Parameters(plan, group.rank, device)
    vocabulary = _divide_vocabulary(loaded, group)
    for module, name in _modules(loaded):
        parameters.replace(module, name, vocabulary.get(module))
    loaded.model.to(device)  # type: ignore[arg-type]  # what modules keep beside parameters and buffers
    for name in plan.attention:
        _tell_heads(loaded.model.get_submodule(name), group.size)
    for index, layer in whole.items():
        loaded.attention.layers[index] = replace(layer, heads=layer.heads // group.size, kv_heads=len(heads[index][0]))
    sites = replace(loaded.sites, groups=_groups(loaded.sites.groups, plan))
    cutter = BypassCutter(loaded.sites.table.sites, plan.cuts, heads, group.rank, group.size, max_dense_delta)
    rehearsals = tuple(replace(each, logits=each.logits.to(device)) for each in loaded.rehearsals)
    return Division(replace(loaded, sites=sites, rehearsals=rehearsals), cutter, plan)


def add_up(division: Division, group: RankGroup) -> None:
    """Let the ranks add up what modules that are cut by their inputs give, bypasses and all: behind their `forward`."""
    for name in division.plan.added:
        module = division.loaded.model.get_submodule(name)
        module.register_forward_hook(lambda _, __, output: group.sum_(output))
        if keeps_experts(module):
            module.register_forward_pre_hook(lambda _, args: _with_one_choice(group, *args))


def _with_one_choice(group: RankGroup, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the input of a module of experts with the first rank's choice of experts.

    Every rank has made one. Two experts may be so close that the last bit of a router's input decides between them, and
    a sum of parts of different experts would be neither's.
    """
    hidden, *choice = args
    return hidden, *map(group.of_first, choice)


def _check(loaded: LoadedModel) -> None:
    if loaded.states.mixers:
        raise UnservableModel("it keeps state beside the KV cache, which tensor parallel does not divide")
    if loaded.spans is not None or loaded.attention.repeated or not loaded.twin_runs:
        raise UnservableModel(
            "its layers are quantised, or attend several times, which tensor parallel does not divide"
        )


class _Parameters:
    """Replaces parameters and buffers by this rank's copies on its device: what was one stays one."""

    def __init__(self, plan: Plan, rank: int, device: torch.device) -> None:
        self._plan = plan
        self._rank = rank
        self._device = device
        self._made: dict[tuple[int, object], torch.Tensor] = {}
        self._kept: list[torch.Tensor] = []  # those of `_made`, whose ids must stay theirs

    def replace(self, module: nn.Module, name: str, rows: torch.Tensor | None) -> None:
        """rows: of a matrix of the vocabulary, that this rank has."""
        cut = self._plan.cuts.get(name)
        for key, tensor in list(module.named_parameters(recurse=False)):
            own = cut or self._plan.cuts.get(f"{name}.{key}")
            setattr(module, key, self._part(tensor, key, own, rows))
        for key, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, key, self._part(buffer, key, None, None))
        if cut is not None and cut.outputs is not None:
            module.out_features = len(cut.outputs[self._rank])  # type: ignore[assignment]
        if cut is not None and cut.inputs is not None:
            module.in_features = len(cut.inputs[self._rank])  # type: ignore[assignment]
        _narrow_experts(module, name, self._plan, self._rank)

    def _part(self, tensor: torch.Tensor, key: str, cut: Cut | None, rows: torch.Tensor | None) -> torch.Tensor:
        place = (id(tensor), None if cut is None and rows is None else key)
        if place not in self._made:
            part = tensor.detach() if rows is None else tensor.detach()[rows]
            made = self._cut(part, key, cut).to(self._device, copy=True)
            self._made[place] = nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
            self._kept.append(tensor)
        return self._made[place]

    def _cut(self, tensor: torch.Tensor, key: str, cut: Cut | None) -> torch.Tensor:
        """Return this rank's part of a bias (out,), a weight (out, in), or a stack of them (experts, out, in)."""
        if cut is None:
            return tensor
        if key.endswith("bias"):
            if cut.outputs is not None:
                return tensor[cut.outputs[self._rank]]
            return tensor if self._rank == 0 else torch.zeros_like(tensor)  # of a sum, added once
        if cut.outputs is not None:
            tensor = tensor.index_select(tensor.dim() - 2, cut.outputs[self._rank])
        if cut.inputs is not None:
            tensor = tensor.index_select(tensor.dim() - 1, cut.inputs[self._rank])
        return tensor


def _narrow_experts(module: nn.Module, name: str, plan: Plan, rank: int) -> None:
    """Tell a module of experts the width between its products, where it keeps one."""
    cut = plan.cuts.get(f"{name}.down_proj")
    for field in ("intermediate_dim", "intermediate_size"):
        if cut is not None and cut.inputs is not None and isinstance(getattr(module, field, None), int):
            setattr(module, field, len(cut.inputs[rank]))


def _modules(loaded: LoadedModel) -> Iterator[tuple[nn.Module, str]]:
    """Yield all modules with their names, and linears that stand for products which modules make by themselves."""
    seen = set[nn.Module]()
    for name, module in (*loaded.model.named_modules(), *loaded.modules.items()):
        if module not in seen:
            seen.add(module)
            yield module, name


def _groups(groups: SiteGroups, plan: Plan) -> SiteGroups:
    """Return the sites' groups with this rank's widths, which are those of every rank."""
    changed = list[Group](groups.groups)
    for name, (index, position) in groups.places.items():
        if (cut := plan.cuts.get(name)) is None:
            continue
        own = changed[index]
        widths = list(own.out_features)
        widths[position] = widths[position] if cut.outputs is None else len(cut.outputs[0])
        width_in = own.in_features if cut.inputs is None else len(cut.inputs[0])
        changed[index] = replace(own, in_features=width_in, out_features=tuple(widths))
    return SiteGroups(tuple(changed), groups.places)


def _tell_heads(module: Any, ranks: int) -> None:
    """Tell an attention module how many heads it has here, where its class asks itself or its configuration."""
    if hasattr(module, "config"):
        module.config = copy.copy(module.config)
    for field in _OF_HEADS:
        for owner in (module, getattr(module, "config", None)):
            count = getattr(owner, field, None)
            if isinstance(count, int):
                setattr(owner, field, max(count // ranks, 1))


def _divide_vocabulary(loaded: LoadedModel, group: RankGroup) -> dict[nn.Module, torch.Tensor]:
    """Divide the embedding and the head by tokens, and join what the ranks find: adapters see both as whole.

    Returns the rows that this rank has of each. A vocabulary that cannot be divided evenly stays whole.
    """
    table = loaded.sites.table
    rows = dict[nn.Module, torch.Tensor]()
    for name in filter(None, {table.embedding, table.head}):
        site, module = table.sites.get(name), loaded.modules[name]
        if site is None or not isinstance(module, nn.Embedding | nn.Linear) or _tokens(site) % group.size:
            return {}
        rows[module] = even(_tokens(site), group.size, name)[group.rank]
    for module, own in rows.items():
        forward = _found(module, own, group) if isinstance(module, nn.Embedding) else _joined(module, group)
        module.__dict__["forward"] = forward
    return rows


def _tokens(site: Site) -> int:
    return site.in_features if site.kind is SiteKind.EMBEDDING else site.out_features


def _found(module: nn.Embedding, rows: torch.Tensor, group: RankGroup) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the forward of an embedding that looks its own tokens up; the sum over ranks has every token's row."""
    look_up, first, count = module.forward, int(rows[0]), len(rows)
    module.padding_idx = None

    def forward(ids: torch.Tensor) -> torch.Tensor:
        own = ids - first
        known = (own >= 0) & (own < count)
        return group.sum_(look_up(own.clamp(0, count - 1)).masked_fill(~known[..., None], 0))

    return forward


def _joined(module: nn.Module, group: RankGroup) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the forward of a head that multiplies by its own tokens' rows; the ranks' logits side by side are all."""
    multiply = module.forward
    return lambda x: group.beside(multiply(x))
