"""Merges of tensors of one shape, entry by entry: of two factors, or of whole deltas.

Each function takes the adapters' tensors, a weight for each, and `How`; it returns one tensor of their shape. The
formulas are PEFT's, in its order of operations, so that the same floating-point numbers come out; the weights enter
after the signs are elected. Papers: TIES (Yadav et al. 2023, arXiv:2306.01708), DARE (Yu et al. 2023,
arXiv:2311.03099), DELLA (Deep et al. 2024, arXiv:2406.11617).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .kinds import MajoritySign

DELLA_SPREAD = 0.2
"""DELLA's epsilon: the difference between the chances of the largest and the smallest entry of a row, where the density
leaves room for it."""


@dataclass(frozen=True)
class How:
    """What decides beside tensors and weights.

    density: share of entries that are kept, over 0 and at most 1. generator: of all that is drawn for a module.
    """

    density: float
    majority_sign: MajoritySign
    generator: torch.Generator


Merge = Callable[[Sequence[Tensor], Tensor, How], Tensor]


def weighted_sum(tensors: Sequence[Tensor], weights: Tensor, how: How) -> Tensor:
    """Return Σ wᵢ tᵢ."""
    return _weighted(torch.stack(list(tensors)), weights).sum(dim=0)


def magnitude_prune(tensors: Sequence[Tensor], weights: Tensor, how: How) -> Tensor:
    """Return Σ wᵢ trim(tᵢ), where `trim` keeps the largest entries."""
    return weighted_sum([_trim(t, how.density) for t in tensors], weights, how)


def ties(tensors: Sequence[Tensor], weights: Tensor, how: How) -> Tensor:
    """Return the mean of wᵢ trim(tᵢ) over those that have the elected sign there (TIES)."""
    return _elected_mean([_trim(t, how.density) for t in tensors], weights, how)


def dare_linear(tensors: Sequence[Tensor], weights: Tensor, how: How) -> Tensor:
    """Return Σ wᵢ drop(tᵢ), where `drop` keeps an entry with the chance `density` and divides it by that (DARE)."""
    return weighted_sum([_drop(t, how) for t in tensors], weights, how)


def dare_ties(tensors: Sequence[Tensor], weights: Tensor, how: How) -> Tensor:
    """Return the mean of wᵢ drop(tᵢ) over those that have the elected sign there."""
    return _elected_mean([_drop(t, how) for t in tensors], weights, how)


def della(tensors: Sequence[Tensor], weights: Tensor, how: How) -> Tensor:
    """Return the mean of wᵢ mag(tᵢ) over those that have the elected sign there (DELLA).

    `mag` keeps an entry by a chance that grows with its place among the magnitudes of its row, and divides it by that
    chance. With p = 1 - density and n entries in a row, the entry of place r (0: the largest) is dropped by the chance
    p - ε/2 + ε r / (n - 1).
    """
    return _elected_mean([_drop_by_magnitude(t, how) for t in tensors], weights, how)


MERGES: dict[str, Merge] = {
    merge.__name__: merge for merge in (weighted_sum, magnitude_prune, ties, dare_linear, dare_ties, della)
}


def della_chances(tensor: Tensor, density: float) -> Tensor:
    """Return the chance of each entry to be kept by `della`. tensor: a vector, or rows of a matrix."""
    spread = min(DELLA_SPREAD, density, 2 * (1 - density))
    width = tensor.shape[-1]
    place = torch.arange(width, dtype=tensor.dtype).expand_as(tensor)
    from_smallest = torch.empty_like(tensor).scatter_(-1, tensor.abs().argsort(dim=-1, stable=True), place)
    return density - spread / 2 + spread * from_smallest / max(width - 1, 1)


def _weighted(stacked: Tensor, weights: Tensor) -> Tensor:
    return stacked * weights.view(-1, *[1] * (stacked.dim() - 1))


def _trim(tensor: Tensor, density: float) -> Tensor:
    if density >= 1:
        return tensor
    flat = torch.zeros_like(tensor).reshape(-1)
    kept = torch.topk(tensor.abs().reshape(-1), int(density * tensor.numel()), sorted=False).indices
    flat[kept] = 1
    return tensor * flat.reshape(tensor.shape)


def _drop(tensor: Tensor, how: How) -> Tensor:
    if how.density >= 1:
        return tensor
    return tensor * _drawn(torch.full_like(tensor, how.density), how) / how.density


def _drop_by_magnitude(tensor: Tensor, how: How) -> Tensor:
    if how.density >= 1:
        return tensor
    chances = della_chances(tensor, how.density)
    return tensor * _drawn(chances, how) / chances


def _drawn(chances: Tensor, how: How) -> Tensor:
    """Return 1 by the chance of each entry, and else 0."""
    return (torch.rand(chances.shape, generator=how.generator, dtype=chances.dtype) < chances).to(chances.dtype)


def _elected_mean(tensors: Sequence[Tensor], weights: Tensor, how: How) -> Tensor:
    stacked = torch.stack(list(tensors))
    signs = stacked.sign()
    votes = (stacked if how.majority_sign == "total" else signs).sum(dim=0)
    agreeing = signs == torch.where(votes >= 0, 1, -1)
    return (_weighted(stacked, weights) * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1.0)
