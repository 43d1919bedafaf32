"""The two operations on spare columns and the columns behind inputs: their interface, and torch's form of them.

    store     W[rows of its own site, columns of an adapter] = B, and 0 in the rows of the group's other sites
    fill      h[rows of s, columns of s] = s.weight · x[rows of s] Aᵀ for each segment s, and 0 elsewhere

Sums are in fp32, and h is rounded once, to the arena's dtype. Everything in the columns must be finite, since the rows
of all other adapters multiply it by 0: infinities and NaNs are replaced.
"""

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch

from ..layout import Segment
from ..torch.factors import Factors

Form = TypeVar("Form")
"""An adapter in the form that an implementation of these products takes."""


class Held(NamedTuple, Generic[Form]):
    """An adapter in the columns. columns: the first of its own, by group."""

    form: Form
    columns: Mapping[int, int]


class ColumnProducts(Protocol[Form]):
    """The operations on wide weights (sum of out_features, in_features + spare columns) by group."""

    def prepare(self, factors: Mapping[int, Factors]) -> Form:
        """Make the form of an adapter, on any one thread. factors: by group."""

    def store(self, held: Mapping[int, Held[Form]]) -> None:
        """Copy these adapters, by slot, into their columns of all groups."""

    def begin(self, held: Mapping[int, Held[Form]], segments: Sequence[Segment]) -> None:
        """Set the work of a step. held: of the segments' slots."""

    def fill(self, group: int, x: torch.Tensor, wide: torch.Tensor, used: int) -> None:
        """Make `wide` x with h behind it. x: (rows, in_features), which may be the first columns of `wide`.

        wide: (rows, in_features + at least `used`), of any content behind x; columns that no slot has become 0.
        """


class TorchColumns:
    """`ColumnProducts` in torch operators: on any device, and the oracle of the kernels."""

    def __init__(self, weights: Mapping[int, torch.Tensor], in_features: Mapping[int, int]) -> None:
        self._spare = {group: weight[:, in_features[group] :] for group, weight in weights.items()}
        self._held: Mapping[int, Held[Mapping[int, Factors]]] = {}
        self._segments: Sequence[Segment] = ()

    def prepare(self, factors: Mapping[int, Factors]) -> Mapping[int, Factors]:
        return factors

    def store(self, held: Mapping[int, Held[Mapping[int, Factors]]]) -> None:
        for factors, columns in held.values():
            for group, column in columns.items():
                _store(self._spare[group][:, column:], factors[group])

    def begin(self, held: Mapping[int, Held[Mapping[int, Factors]]], segments: Sequence[Segment]) -> None:
        self._held, self._segments = held, segments

    def fill(self, group: int, x: torch.Tensor, wide: torch.Tensor, used: int) -> None:
        if wide.data_ptr() != x.data_ptr():
            wide[:, : x.shape[1]] = x
        h = wide[:, x.shape[1] : x.shape[1] + used].zero_()
        for slot, weight, start, end in self._segments:
            factors, columns = self._held[slot]
            if group in columns:
                own = h[start:end, columns[group] : columns[group] + factors[group].rank]
                torch.addmm(own, x[start:end], factors[group].a, beta=0, alpha=weight, out=own)


def _store(spare: torch.Tensor, factors: Factors) -> None:
    """Copy the factors of a group. spare: (sum of out_features, columns from the adapter's first on)."""
    own, row, column = spare[:, : factors.rank].zero_(), 0, 0
    for b in factors.b:
        rank, out = b.shape
        torch.nan_to_num(b.t(), out=own[row : row + out, column : column + rank])
        row, column = row + out, column + rank
