"""Primitives of one kind of several adapters as one call: `BATCHED` has one row for each kind that has such a form.

A batched form takes as many rows of each of several segments, and their adapters' parameters stacked. Parameters are
stacked when the adapters of the batch change, and read as often as those run together. Formulas: `formulas.py`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from . import structured
from .formulas import ACTIVATIONS, Op, csr_product

Fields = Mapping[str, Any]


class Batched(NamedTuple):
    """The batched form of a kind of primitive.

    function(x, y, **stacked): what the formula returns. x: (segments, rows, ..., in), or (segments, rows) ids at an
    embedding. y: (segments, rows, ..., out); None where the kind does not read the output. key: equal for primitives
    that can be stacked. stack: makes the stacked parameters of such primitives. shared: fields that they have in
    common, which are not stacked.
    """

    function: Callable[..., torch.Tensor]
    key: Callable[[Op], Hashable]
    stack: Callable[[Sequence[Op]], Fields]
    shared: frozenset[str] = frozenset()


def shapes(op: Op) -> Hashable:
    return op.shapes


def stacked(ops: Sequence[Op]) -> Fields:
    """Stack each tensor as (segments, ...); other values are those of the first primitive."""
    first = ops[0].fields
    return {
        name: torch.stack([op.fields[name] for op in ops]) if isinstance(value, torch.Tensor) else value
        for name, value in first.items()
    }


def input_rotation(x: torch.Tensor, _: None, *, blocks: torch.Tensor) -> torch.Tensor:
    """Rotate blocks of the input. blocks: (segments, blocks or 1, k, k)."""
    grouped = x.reshape(x.shape[0], x.shape[1], -1, blocks.shape[-1]).transpose(1, 2)
    return torch.matmul(grouped, blocks.mT).transpose(1, 2).reshape(x.shape)


def pair_rotation(_: torch.Tensor, y: torch.Tensor, *, d: torch.Tensor, c: torch.Tensor, group: int) -> torch.Tensor:
    """Rotate pairs of the output. d, c: (segments, out), where c is negative in the halves that `rot` negates."""
    turned = y.unflatten(-1, (-1, 2, group // 2)).flip(-2).flatten(-3)
    return torch.addcmul(y * _beside(d, y), turned, _beside(c, y))


def stacked_pairs(ops: Sequence[Op]) -> Fields:
    """Stack pairwise rotations, with the signs of `rot` folded into c."""
    fields = dict(stacked(ops))
    c, half = fields["c"], fields["group"] // 2
    c.unflatten(-1, (-1, 2, half))[..., 0, :].neg_()
    return fields


def kronecker(x: torch.Tensor, _: None, *, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    """Multiply by Kronecker products. w1: (segments, a, c); w2: (segments, b, d)."""
    segments, rows, (b, d) = x.shape[0], x.shape[1:-1], w2.shape[1:]
    half = torch.bmm(x.reshape(segments, -1, d), w2.mT).view(segments, -1, w1.shape[2], b)
    return torch.matmul(w1[:, None], half).view(segments, *rows, -1)


class CompressedRows:
    """Sparse matrices in compressed rows as one block-diagonal matrix, of which each block has an input of its own."""

    def __init__(self, ops: Sequence[Op]) -> None:
        nnz = [len(op.fields["values"]) for op in ops]
        begins = [sum(nnz[:index]) for index in range(len(ops))]
        starts = [op.fields["starts"] for op in ops]
        ends = [rows[1:] + begin for rows, begin in zip(starts, begins, strict=True)]
        self._starts = torch.cat([starts[0][:1], *ends])
        self._columns = [op.fields["columns"] for op in ops]
        self._values = torch.cat([op.fields["values"] for op in ops]).float()
        self._out_features = len(starts[0]) - 1
        self._joined: torch.Tensor | None = None

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply each matrix by its segment's rows.

        x: (segments, rows, in). Returns (segments, rows, out) in fp32.
        """
        segments, rows, width = x.shape
        if self._joined is None:  # the input's width is known from here on
            self._joined = torch.cat([columns + index * width for index, columns in enumerate(self._columns)])
        shape, columns = (segments * self._out_features, segments * width), x.mT.reshape(segments * width, rows)
        return csr_product(shape, self._starts, self._joined, self._values, columns).view(segments, -1, rows).mT


def sparse(x: torch.Tensor, _: None, *, matrices: CompressedRows) -> torch.Tensor:
    product = matrices.product(x.flatten(1, -2))
    return product.to(x.dtype).view(*x.shape[:-1], -1)


def shared_low_rank(
    x: torch.Tensor, _: None, *, a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Add low-rank terms whose factors all segments share, each with scales of its own (VeRA).

    a: (rank, at least in). b: (at least out, rank). d: (segments, rank). scale: (segments, out).
    """
    h = x @ a[:, : x.shape[-1]].T
    h = h * _beside(d, h)
    term = h @ b[: scale.shape[-1]].T
    return term * _beside(scale, term)


def same_factors(op: Op) -> Hashable:
    a, b, d, scale = (op.fields[name] for name in ("a", "b", "d", "scale"))
    return a.data_ptr(), b.data_ptr(), a.shape, b.shape, d.shape, scale.shape


def stacked_scales(ops: Sequence[Op]) -> Fields:
    own = {name: torch.stack([op.fields[name] for op in ops]) for name in ("d", "scale")}
    return {"a": ops[0].fields["a"], "b": ops[0].fields["b"], **own}


def bottleneck(
    x: torch.Tensor, y: torch.Tensor, *, source: str, activation: str, **weights: torch.Tensor
) -> torch.Tensor:
    return _bottleneck(y + x if source else y, activation, **weights)


def parallel_bottleneck(
    x: torch.Tensor, _: None, *, source: str, activation: str, **weights: torch.Tensor
) -> torch.Tensor:
    return _bottleneck(x, activation, **weights)


def _bottleneck(
    x: torch.Tensor,
    activation: str,
    *,
    down: torch.Tensor,
    down_bias: torch.Tensor,
    up: torch.Tensor,
    up_bias: torch.Tensor,
) -> torch.Tensor:
    rows = x.flatten(1, -2)
    inner = ACTIVATIONS[activation](torch.baddbmm(down_bias[:, None], rows, down.mT))
    return torch.baddbmm(up_bias[:, None], inner, up.mT).view(*x.shape[:-1], -1)


def routed_low_rank(
    x: torch.Tensor,
    _: None,
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    prototypes: torch.Tensor,
    top_k: int,
    temperature: float,
) -> torch.Tensor:
    """Add low-rank terms of experts that each row chooses by prototypes.

    a: (segments, experts, rank, in). b: (segments, experts, rank, out). prototypes: (segments, experts, in).
    """
    rows = x.flatten(1, -2)
    fit = torch.bmm(rows, prototypes.mT).abs()
    best, experts = fit.topk(top_k, dim=-1)
    gates = torch.zeros_like(fit).scatter_(-1, experts, (best / temperature).softmax(-1))
    h = torch.bmm(rows, a.flatten(1, 2).mT).unflatten(-1, a.shape[1:3])
    return torch.bmm((h * gates[..., None]).flatten(-2), b.flatten(1, 2)).view(*x.shape[:-1], -1)


def _beside(stack: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """View (segments, width) with as many dimensions as rows have: (segments, ..., width)."""
    return stack.view(stack.shape[0], *[1] * (rows.dim() - 2), stack.shape[1])


BATCHED: Mapping[str, Batched] = {
    "input_rotation": Batched(input_rotation, shapes, stacked),
    "pair_rotation": Batched(pair_rotation, shapes, stacked_pairs),
    "kronecker": Batched(kronecker, shapes, stacked),
    "sparse": Batched(sparse, lambda op: op.fields["starts"].shape, lambda ops: {"matrices": CompressedRows(ops)}),
    "shared_low_rank": Batched(shared_low_rank, same_factors, stacked_scales, frozenset({"a", "b"})),
    "routed_low_rank": Batched(routed_low_rank, shapes, stacked),
    "bottleneck": Batched(bottleneck, shapes, stacked),
    "parallel_bottleneck": Batched(parallel_bottleneck, shapes, stacked),
    "spectral": Batched(structured.spectral, structured.same_width, structured.joined_spectra),
    "circulant": Batched(structured.circulant, structured.same_kernels, structured.transformed_kernels),
    "shared_bases": Batched(
        structured.shared_bases, structured.same_bases, structured.listed_scales, frozenset({"a", "b", "d", "scale"})
    ),
}
