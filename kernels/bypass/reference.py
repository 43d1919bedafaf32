"""The bypasses as their formula reads, in float64: the oracle of the tests. Nothing serves with it."""

from collections.abc import Mapping, Sequence

import torch

from .layout import BlobLayout, Group, Segment


def naive_delta(
    arena: torch.Tensor,
    groups: Sequence[Group],
    slots: Mapping[int, tuple[int, BlobLayout]],
    segments: Sequence[Segment],
    group: int,
    position: int,
    x: torch.Tensor,
) -> torch.Tensor:
    """Return the sum over segments s of s.weight · (x Aᵀ) Bᵀ on the rows of s, as (rows, out_features) float64.

    slots: slot to (base, layout). x: (rows, in_features), or (rows,) ids for a gathered group.
    """
    spec, out = groups[group], groups[group].out_features[position]
    delta = torch.zeros(x.shape[0], out, dtype=torch.float64, device=x.device)
    for slot, weight, start, end in segments:
        base, layout = slots[slot]
        if group not in layout or not (rank := layout[group].ranks[position]):
            continue
        skip, total = sum(layout[group].ranks[:position]), sum(layout[group].ranks)
        a = arena[base + layout[group].a :][: total * spec.in_features].double()
        b = arena[base + layout[group].b[position] :][: rank * out].double().view(rank, out)
        rows = x[start:end]
        h = a.view(-1, total)[rows] if spec.gather else rows.double() @ a.view(total, -1).t()
        delta[start:end] += weight * (h[:, skip : skip + rank] @ b)
    return delta
