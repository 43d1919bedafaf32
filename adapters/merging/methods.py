"""What each kind of merge computes at one module, under the names of `kinds.KINDS`.

A method takes what the adapters have there, each as A, B, a bias, a scaling s and a weight w, and returns one A, B and
bias of scaling 1. The delta of an adapter is Δ = s B A. Those with `_svd` in their names, and `della`, work on the
deltas and bring the result back to two factors; the others on A and on B, by √|w s| each, and the cross terms that
come of it are PEFT's. Biases s·bias are merged as deltas are, in every kind; PEFT 0.21 loses them.

All tensors are float32.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .decomposition import DENSE_LIMIT, factorise, factorise_product, padded, span
from .entries import MERGES, How, Merge, weighted_sum

NEARLY_PARALLEL = 0.9995
"""The cosine from which on `slerp` goes along the chord."""


@dataclass(frozen=True)
class Factors:
    """What one adapter has at a module. a: (rank, in). b: (out, rank). bias: (out,), None without one."""

    a: Tensor
    b: Tensor
    bias: Tensor | None
    scaling: float
    weight: float

    @property
    def delta(self) -> Tensor:
        return self.b @ self.a * self.scaling


class Merged(NamedTuple):
    """What comes out: A: (rank, in), B: (out, rank) and a bias (out,), None where no adapter has one."""

    a: Tensor
    b: Tensor
    bias: Tensor | None


Method = Callable[[Sequence[Factors], int, How], Merged]


def cat(parts: Sequence[Factors], rank: int, how: How) -> Merged:
    """Return Σ w s B A, exactly: all A one below the other, all B side by side. Zeros fill it up to `rank`."""
    a = torch.cat([part.a * part.weight * part.scaling for part in parts], dim=0)
    b = torch.cat([part.b for part in parts], dim=1)
    return Merged(*padded(a, b, rank), _bias(parts, weighted_sum, how))


def svd(parts: Sequence[Factors], rank: int, how: How) -> Merged:
    """Return what is nearest to Σ w s B A at this rank."""
    if max(parts[0].a.shape[1], parts[0].b.shape[0]) <= DENSE_LIMIT:
        return _of_deltas(weighted_sum)(parts, rank, how)
    exact = cat(parts, sum(part.a.shape[0] for part in parts), how)
    return Merged(*factorise_product(exact.b, exact.a, rank), exact.bias)


def knots(parts: Sequence[Factors], rank: int, how: How) -> Merged:
    """Return TIES of the aligned parts (KnOTS, Stoica et al. 2024, arXiv:2410.19735).

    [Δ₁ … Δₙ] = U Σ [V₁ … Vₙ]ᵀ in one decomposition. U is common; ties merges the Σ Vᵢᵀ = Uᵀ Δᵢ to M, and the result is
    U M. In float64, as the paper's own code. Its rank is at most the sum of all.
    """
    deltas = [(part.b.double() * part.scaling, part.a.double()) for part in parts]
    basis = span([b for b, _ in deltas])
    inside = [(basis.T @ b) @ a for b, a in deltas]
    u, s, _ = torch.linalg.svd(torch.cat(inside, dim=1), full_matrices=False)
    u = u[:, s > s[:1] * 1e-7]
    weights = torch.tensor([part.weight for part in parts], dtype=torch.float64)
    merged = MERGES["ties"]([u.T @ one for one in inside], weights, how)
    common = basis @ u
    a, b = factorise_product(common, merged, rank) if rank < common.shape[1] else padded(merged, common, rank)
    return Merged(a.float(), b.float(), _bias(parts, MERGES["ties"], how))


def slerp(parts: Sequence[Factors], rank: int, how: How) -> Merged:
    """Return the point between two deltas on the arc that joins them (Shoemake 1985), t = w₂ / (w₁ + w₂).

    sin((1-t)θ)/sin θ Δ₁ + sin(tθ)/sin θ Δ₂, with cos θ = <Δ₁, Δ₂> / |Δ₁||Δ₂|; (1-t) Δ₁ + t Δ₂ where they are nearly
    parallel, and where one of the two lacks the module. `rank` is the sum of theirs, or less by the SVD.
    """
    placed = [replace(part, weight=weight) for part, weight in zip(parts, _on_arc(parts), strict=True)]
    if sum(part.a.shape[0] for part in parts) <= rank:
        return cat(placed, rank, how)
    return svd(placed, rank, how)


def _on_arc(parts: Sequence[Factors]) -> list[float]:
    """Return the coefficients of the deltas. The weights of all parts are shares of 1 already."""
    shares = [part.weight for part in parts]
    if len(parts) == 1:
        return shares
    lengths = [math.sqrt(max(_inner(part, part), 0.0)) for part in parts]
    cosine = _inner(*parts) / (lengths[0] * lengths[1]) if all(lengths) else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return shares
    angle = math.acos(cosine)
    return [math.sin(share * angle) / math.sin(angle) for share in shares]


def _inner(one: Factors, other: Factors) -> float:
    """Return <Δ, Δ'> = s s' tr((B'ᵀ B)(A A'ᵀ)), without multiplying the deltas out."""
    in_rows = other.b.double().T @ one.b.double()
    in_columns = other.a.double() @ one.a.double().T
    return float((in_rows * in_columns).sum()) * one.scaling * other.scaling


def _of_factors(merge: Merge) -> Method:
    """Return the method that merges A and B each by itself."""

    def method(parts: Sequence[Factors], rank: int, how: How) -> Merged:
        signed = [part.weight * part.scaling for part in parts]
        roots = [math.sqrt(abs(weight)) for weight in signed]
        of_a = torch.tensor([root if weight >= 0 else -root for root, weight in zip(roots, signed, strict=True)])
        a = merge([part.a for part in parts], of_a, how)
        b = merge([part.b for part in parts], torch.tensor(roots), how)
        return Merged(a, b, _bias(parts, merge, how))

    return method


def _of_deltas(merge: Merge) -> Method:
    """Return the method that merges the deltas, and decomposes what comes out."""

    def method(parts: Sequence[Factors], rank: int, how: How) -> Merged:
        merged = merge([part.delta for part in parts], torch.tensor([part.weight for part in parts]), how)
        bias = _bias(parts, merge, how)
        return Merged(*factorise(merged, rank, how.generator), bias)

    return method


def _bias(parts: Sequence[Factors], merge: Merge, how: How) -> Tensor | None:
    there = [part for part in parts if part.bias is not None]
    if not there:
        return None
    biases = [part.bias * part.scaling for part in there if part.bias is not None]
    return merge(biases, torch.tensor([part.weight for part in there]), how)


METHODS: Mapping[str, Method] = {
    "cat": cat,
    "linear": _of_factors(weighted_sum),
    "svd": svd,
    **{name: _of_factors(MERGES[name]) for name in ("ties", "dare_linear", "dare_ties", "magnitude_prune")},
    **{f"{name}_svd": _of_deltas(MERGES[name]) for name in ("ties", "dare_linear", "dare_ties", "magnitude_prune")},
    "della": _of_deltas(MERGES["della"]),
    "knots": knots,
    "slerp": slerp,
}
