"""The primitives that are added beside a module, as the matrices and rows that they are.

A delta is (out_features, in_features) in float32, to be added to the weight of a linear, y = W x + b; an embedding's
weight is seen transposed, as a linear of one-hot rows. Knows no modules.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from peftserve.adapters.primitives import Dense, Kronecker, LowRank, Primitive, Sparse
from peftserve.kernels.ops.formulas import FORMULAS

_ROWS_AT_ONCE = 1024


def add_low_rank(weight: torch.Tensor, primitive: LowRank, scale: float) -> None:
    weight[: len(primitive.b), : primitive.a.shape[1]].addmm_(primitive.b.float(), primitive.a.float(), alpha=scale)


def add_dense(weight: torch.Tensor, primitive: Dense, scale: float) -> None:
    weight[: len(primitive.w)].add_(primitive.w.float(), alpha=scale)


def add_kronecker(weight: torch.Tensor, primitive: Kronecker, scale: float) -> None:
    weight.add_(torch.kron(primitive.w1.float(), primitive.w2.float()), alpha=scale)


def add_sparse(weight: torch.Tensor, primitive: Sparse, scale: float) -> None:
    counts = primitive.starts.diff().long()
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    places = (rows, primitive.columns.long())
    weight.index_put_(places, primitive.values.float() * scale, accumulate=True)


def add_by_formula(weight: torch.Tensor, primitive: Primitive, scale: float) -> None:
    """Read the matrix off the formula's outputs for unit vectors, of which there are `in_features`."""
    function, outputs = FORMULAS[primitive.kind].function, weight.new_empty(1, len(weight))
    for columns in torch.arange(weight.shape[1]).split(_ROWS_AT_ONCE):
        unit = torch.nn.functional.one_hot(columns, weight.shape[1]).float()
        term = function(unit, outputs.expand(len(columns), -1), **in_float32(primitive))
        weight[: term.shape[-1], columns] += scale * term.T


_ADDED: Mapping[str, Callable[[torch.Tensor, Any, float], None]] = {
    "low_rank": add_low_rank,
    "dense": add_dense,
    "kronecker": add_kronecker,
    "sparse": add_sparse,
    "shared_low_rank": add_by_formula,
    "shared_bases": add_by_formula,
    "spectral": add_by_formula,
    "circulant": add_by_formula,
}
ADDED_KINDS = frozenset(_ADDED)
"""Kinds of primitives that are a matrix beside the module's own."""


def add_delta(weight: torch.Tensor, primitive: Primitive, scale: float) -> None:
    """Add `scale` times a primitive's matrix to a linear's weight (out_features, in_features) in place."""
    _ADDED[primitive.kind](weight, primitive, scale)


def in_float32(primitive: Primitive) -> dict[str, Any]:
    """Return a primitive's fields, as its formula takes them, with floating tensors in float32."""
    fields = vars(primitive)
    return {n: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in fields.items()}
