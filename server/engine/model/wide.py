"""Weights with spare columns behind their own, for the bypasses that run inside the base's products.

A plain linear, or a group's linears as one, keeps its weight as the first columns of a wider matrix. The module's own
weight is a view of these: no byte of the base is stored twice, names and `state_dict` stay, and the weight reads as
before.
"""

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from peftserve.kernels.bypass.columns.places import GRAIN
from peftserve.kernels.bypass.layout import RowSet
from peftserve.kernels.integers import round_up

from ..adapters.packing import SiteGroups
from .fused import plain_groups

logger = logging.getLogger(__name__)

COLUMNS = 256  # on a GPU: five adapters of rank 16 at q, k and v; 4.4% of the weights of Llama-3.1-8B


def spare_columns(asked: int | None, device: torch.device) -> int:
    """Return how many spare columns each weight is to have. asked: by the operator; None for the default.

    It is 0 on a CPU, where they cost more than they save.
    """
    columns = (0 if device.type == "cpu" else COLUMNS) if asked is None else asked
    return round_up(columns, GRAIN)


def widen(
    modules: Mapping[str, nn.Module], sites: SiteGroups, fused: Mapping[int, nn.Linear], columns: int
) -> dict[int, torch.Tensor]:
    """Give the weights of groups that every token of a step reaches some spare columns of zeros.

    fused: by group, its linears as one. Of the other groups, those are widened that are one plain nn.Linear with a
    weight of its own. Returns (sum of out_features, in_features + columns) by group.
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
    """Yield a group, the linear that computes it, and the modules whose weights are rows of that linear's."""
    for group, linears in plain_groups(modules, sites).items():
        if sites.groups[group].rows is not RowSet.TOKENS:
            continue
        if group in fused:
            yield group, fused[group], linears
        elif len(linears) == 1:
            yield group, linears[0], []


def _widen(linear: nn.Linear, parts: list[nn.Linear], columns: int) -> torch.Tensor:
    """Move a linear's weight into a wider matrix, which is returned.

    parts: the modules whose weights are the linear's rows, one after the other.
    """
    own = linear.weight.data
    wide = own.new_zeros(own.shape[0], own.shape[1] + columns)
    linear.weight.data = wide[:, : own.shape[1]].copy_(own)
    row = 0
    for part in parts:
        part.weight.data = linear.weight.data[row : row + part.out_features]
        row += part.out_features
    return wide
