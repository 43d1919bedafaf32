"""One product of the base for modules that read one input: q, k and v; gate and up.

Their weights become rows of one matrix, of which each module's own weight is a view: no byte of the base is stored
twice, names and `state_dict` stay, and the weight of each module reads as before.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from peftserve.adapters.peft.plain import is_plain_linear

from ..adapters.packing import SiteGroups

CPU_ROWS = 96  # as many as packed weights are faster for (`packed_linear.py`)


def fused_rows(device: torch.device) -> int | None:
    """Return the most rows of an input for which one product is faster than several; None for any number.

    On a GPU it saves launches. On a CPU it saves calls in decodes, but with more rows to read parts of wider rows costs
    more than that: prefills took 1.05 to 1.08 times as long.
    """
    return CPU_ROWS if device.type == "cpu" else None


def fuse_siblings(modules: Mapping[str, nn.Module], sites: SiteGroups) -> dict[int, nn.Linear]:
    """Join the linears of each group of several that are plain and of one kind. Returns the joined ones by group."""
    plain = plain_groups(modules, sites)
    return {group: _fuse(linears) for group, linears in plain.items() if len(linears) > 1 and _alike(linears)}


def separate_modules(
    modules: Mapping[str, nn.Module], sites: SiteGroups, fused: Mapping[int, nn.Linear]
) -> list[nn.Module]:
    """Return the modules that are no part of a fused linear."""
    parts = {modules[name] for name, (group, _) in sites.places.items() if group in fused}
    return [module for module in modules.values() if module not in parts]


def plain_groups(modules: Mapping[str, nn.Module], sites: SiteGroups) -> dict[int, list[nn.Linear]]:
    """Return the modules, in their order, of each group in which all are plain nn.Linear and own their parameters.

    A parameter that two modules share, such as the weight of a head that is tied to the embedding, must stay one.
    """
    uses = Counter(id(p) for module in set(modules.values()) for p in module.parameters(recurse=False))
    groups: dict[int, list[nn.Linear]] = {}
    others: set[int] = set()
    for name, (group, _) in sorted(sites.places.items(), key=lambda item: item[1]):
        module = modules[name]
        if is_plain_linear(module) and all(uses[id(p)] == 1 for p in module.parameters()):
            groups.setdefault(group, []).append(module)
        else:
            others.add(group)
    return {group: linears for group, linears in groups.items() if group not in others}


def _alike(linears: Sequence[nn.Linear]) -> bool:
    return len({(m.weight.dtype, m.weight.device, m.bias is None) for m in linears}) == 1


def _fuse(members: Sequence[nn.Linear]) -> nn.Linear:
    widths = [m.out_features for m in members]
    fused = nn.Linear(members[0].in_features, sum(widths), bias=members[0].bias is not None, device="meta")
    fused.weight = _joined([m.weight for m in members])
    if members[0].bias is not None:
        fused.bias = _joined([m.bias for m in members])
    return fused


def _joined(parts: Sequence[torch.Tensor]) -> nn.Parameter:
    """Join parts to one parameter (sum of rows, ...), of which all of them are views from now on."""
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return nn.Parameter(whole, requires_grad=False)
