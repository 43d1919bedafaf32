"""Weights with spare columns behind their own, for the bypasses that run inside the base's products.

A plain linear, or a group's linears as one, keeps its weight as the first columns of a wider matrix. The module's own
weight is a view of these: no byte of the base is there twice, names and `state_dict` stay, and whoever reads a weight
reads what it always was.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from peftserve.kernels.bypass.columns.places import GRAIN
from peftserve.kernels.bypass.layout import RowSet
from peftserve.kernels.integers import round_up

from ..adapters.packing import SiteGroups
from .fused import is_of_one

logger = logging.getLogger(__name__)

COLUMNS = 256  # on a GPU: five adapters of rank 16 at q, k and v; 4.4% of the weights of Llama-3.1-8B


def spare_columns(asked: int | None, device: torch.device) -> int:
    """Of each weight; 0 for none. asked: by the operator. On a CPU what they save is less than what they cost."""
    columns = (0 if device.type == "cpu" else COLUMNS) if asked is None else asked
    return round_up(columns, GRAIN)


def widen(
    modules: Mapping[str, nn.Module], sites: SiteGroups, fused: Mapping[int, nn.Linear], columns: int
) -> dict[int, torch.Tensor]:
    """(sum of out_features, in_features + columns) by group, of those that every token of a step reaches.

    fused: groups whose linears are one. Others are widened where they are one plain nn.Linear with a weight that
    nobody else has. What lies in the columns is 0.
    """
    if not columns:
        return {}
    wide = {group: _widen(linear, parts, columns) for group, linear, parts in _plain(modules, sites, fused)}
    num_bytes = sum(weight.shape[0] * columns * weight.element_size() for weight in wide.values())
    logger.info("%d spare columns behind %d weights take %.1f MiB", columns, len(wide), num_bytes / (1 << 20))
    return wide


def _plain(
    modules: Mapping[str, nn.Module], sites: SiteGroups, fused: Mapping[int, nn.Linear]
) -> Iterator[tuple[int, nn.Linear, list[nn.Linear]]]:
    """A group, the linear whose product it is, and those whose weights are rows of its weight."""
    uses = Counter(id(p) for module in set(modules.values()) for p in module.parameters(recurse=False))
    members: dict[int, list[nn.Module]] = {}
    for name, (group, _) in sorted(sites.places.items(), key=lambda item: item[1]):
        members.setdefault(group, []).append(modules[name])
    for group, there in members.items():
        if sites.groups[group].rows is not RowSet.TOKENS:
            continue
        if group in fused:
            yield group, fused[group], [module for module in there if isinstance(module, nn.Linear)]
        elif len(there) == 1 and is_of_one(there[0], uses):
            yield group, there[0], []


def _widen(linear: nn.Linear, parts: list[nn.Linear], columns: int) -> torch.Tensor:
    """parts: those that have the linear's rows, one after the other."""
    own = linear.weight.data
    wide = own.new_zeros(own.shape[0], own.shape[1] + columns)
    linear.weight.data = wide[:, : own.shape[1]].copy_(own)
    row = 0
    for part in parts:
        part.weight.data = linear.weight.data[row : row + part.out_features]
        row += part.out_features
    return wide
