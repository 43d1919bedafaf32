"""The forms that a module's difference can have in an adapter, and what each of them takes and misses.

    WHOLE      the module with the tuned parameters                  exact
    ROWS       the tuned rows of an embedding                        exact
    LOW_RANK   W + B A, and the tuned bias less the base's           the error asked for, or the rank
    SPARSE     W + single entries                                    exact where a float32 holds them

Knows no files and no choice between them.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch

from peftserve.adapters.merging.decomposition import factorise
from peftserve.adapters.sites import Site, SiteKind

from .pair import Tensors

FLOAT, INDEX = torch.float32, torch.int32
ENTRY_BYTES = FLOAT.itemsize + 2 * INDEX.itemsize
_FIRST_RANK = 16


class Form(StrEnum):
    """The forms, as they are printed."""

    WHOLE = "whole"
    ROWS = "rows"
    LOW_RANK = "low rank"
    SPARSE = "sparse"


class Limits(NamedTuple):
    """max_error: largest difference of a number from the tuned one; None for any. rank: the largest; None for any."""

    max_error: float | None = None
    rank: int | None = None

    @property
    def approximates(self) -> bool:
        return self.max_error is not None or self.rank is not None

    @property
    def most_error(self) -> float:
        """Return the largest error of any form."""
        return self.max_error if self.max_error is not None else math.inf if self.rank is not None else 0.0


@dataclass(frozen=True)
class LowRank:
    """B A, and a change of the bias if it has one. a: (rank, in), b: (out, rank), bias: (out,), all float32."""

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    error: float

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.a, self.b, self.bias) if tensor is not None)


@dataclass(frozen=True)
class Sparse:
    """Entries of a weight. places: (2, nnz) int32, rows above columns; values: (nnz,) float32."""

    places: torch.Tensor
    values: torch.Tensor
    error: float

    @property
    def num_bytes(self) -> int:
        return self.places.nbytes + self.values.nbytes

    def rank_for(self, site: Site) -> int:
        """Return the least r with which PEFT has room for the entries: r (in + out) of them."""
        return max(1, math.ceil(len(self.values) / (site.in_features + site.out_features)))


@dataclass(frozen=True)
class Rows:
    """Rows of an embedding. ids: (n,); values: (n, width) float32, of the type `dtype` before."""

    ids: torch.Tensor
    values: torch.Tensor
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.values.numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Changed:
    """A module that differs. whole_bytes: of all its tuned parameters. The forms that it can have beside WHOLE."""

    site: Site
    whole_bytes: int
    low_rank: LowRank | None = None
    sparse: Sparse | None = None
    rows: Rows | None = None


def changed_module(site: Site, parameters: dict[str, Tensors], limits: Limits) -> Changed:
    """Return the forms of a module's difference. parameters: all of it, by their last names."""
    whole = sum(tensors.after.numel() * tensors.dtype.itemsize for tensors in parameters.values())
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None or weight.before.shape != weight.after.shape:
        return Changed(site, whole)
    if site.kind is SiteKind.EMBEDDING:
        return Changed(site, whole, rows=_rows(weight, whole))
    if site.kind is not SiteKind.LINEAR:
        return Changed(site, whole)
    sparse = None if site.transposed or (bias is not None and bias.differ) else _sparse(weight, whole)
    low_rank = _low_rank(site, weight, bias, limits, whole)
    most = limits.most_error
    return Changed(
        site,
        whole,
        low_rank if low_rank is not None and low_rank.error <= most else None,
        sparse if sparse is not None and sparse.error <= most else None,
    )


def _rows(weight: Tensors, whole: int) -> Rows | None:
    ids = (weight.before != weight.after).any(dim=1).nonzero().flatten()
    rows = Rows(ids, weight.after[ids], weight.dtype)
    return rows if rows.num_bytes < whole else None


def _sparse(weight: Tensors, whole: int) -> Sparse | None:
    places = (weight.before != weight.after).nonzero()
    if not len(places) or len(places) * ENTRY_BYTES >= whole:
        return None
    rows, columns = places.T
    before, after = weight.before[rows, columns], weight.after[rows, columns]
    return Sparse(places.T.to(INDEX).contiguous(), after - before, _shift_error(before, after))


def _shift_error(before: torch.Tensor, after: torch.Tensor) -> float:
    """Return what is left of a difference that is added in float32, as PEFT adds it."""
    return float((before + (after - before) - after).abs().max())


def _low_rank(site: Site, weight: Tensors, bias: Tensors | None, limits: Limits, whole: int) -> LowRank | None:
    """Return factors of the least rank within the limits; None if there are none, or if the whole is smaller."""
    shift = (bias.after - bias.before) if bias is not None and bias.differ else None
    missed = 0.0 if bias is None else _shift_error(bias.before, bias.after)
    delta = weight.after.double() - weight.before.double()
    delta = delta.T.contiguous() if site.transposed else delta
    if not weight.differ:
        zeros = LowRank(torch.zeros(1, site.in_features), torch.zeros(site.out_features, 1), shift, missed)
        return zeros if zeros.num_bytes < whole else None
    if not limits.approximates:
        return None
    most = (whole - 1) // (FLOAT.itemsize * (site.in_features + site.out_features))
    most = min(most, *delta.shape, *(() if limits.rank is None else (limits.rank,)))
    found = None if most < 1 else _factors(delta, most, limits)
    return None if found is None else LowRank(*found, shift, max(_error(delta, *found), missed))


def _factors(delta: torch.Tensor, most: int, limits: Limits) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return A and B: of the rank asked for, or of the least one with which the error is small enough.

    delta: in float64, so that the error is that of the factors.
    """
    generator, single = torch.Generator().manual_seed(0), delta.float()
    if limits.max_error is None:
        return _trimmed(*factorise(single, most, generator))
    rank = min(_FIRST_RANK, most)
    while True:
        a, b = factorise(single, rank, generator)
        if _error(delta, a, b) <= limits.max_error:
            return _least(delta, a, b, limits.max_error)
        if rank == most:
            return None
        rank = min(4 * rank, most)


def _trimmed(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors without what rounding leaves of directions that the matrix does not have."""
    strengths = b.norm(dim=0)
    kept = max(1, int((strengths > strengths[:1] * torch.finfo(b.dtype).eps * max(b.shape[0], a.shape[1])).sum()))
    return a[:kept].contiguous(), b[:, :kept].contiguous()


def _least(
    delta: torch.Tensor, a: torch.Tensor, b: torch.Tensor, max_error: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fewest first directions of factors whose error is small enough; all of them are."""
    low, high = 0, len(a)
    while high - low > 1:
        middle = (low + high) // 2
        within = _error(delta, a[:middle], b[:, :middle]) <= max_error
        low, high = (low, middle) if within else (middle, high)
    return a[:high].contiguous(), b[:, :high].contiguous()


def _error(delta: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> float:
    return float((delta - b.double() @ a.double()).abs().max())
