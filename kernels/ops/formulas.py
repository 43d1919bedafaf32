"""The formulas of the primitives beside the low-rank bypass, over rows of tokens.

`FORMULAS` has one row for each kind of primitive. A formula takes the module's input and output for some rows, and the
primitive's own tensors, which are views of the arena. Knows no slots, no steps and no modules.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .bases import shared_bases
from .spectral import circulant, spectral

with warnings.catch_warnings():  # torch says once that CSR is in beta: here, rather than in somebody's step
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(
        torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0), (1, 1)
    )


class Stage(IntEnum):
    """When a primitive applies at its site, and what its formula returns."""

    INPUT = 0  # what is added to the module's input; depends on that input
    REPLACE = 1  # the output that takes the place of the base's
    OUTPUT = 2  # what is added to the output; depends on that output
    ADD = 3  # what is added to the output; depends on the module's own input
    INSIDE = 4  # what the module adds to its own inner products


class Formula(NamedTuple):
    """A kind of primitive: function(x, y, **fields) with x, y: (rows, ..., width), or x: (rows,) ids at an embedding.

    y is None before the call of the module. A primitive with a field `source` gets as x the input of the module of that
    name, rather than its own module's. row: the field that is one row to multiply by or to add, if that is all that the
    formula does.
    """

    stage: Stage
    function: Callable[..., torch.Tensor]
    row: str | None = None


@dataclass(frozen=True)
class Op:
    """One primitive of one adapter at one site. fields: tensors on the device, and plain values."""

    kind: str
    fields: Mapping[str, Any]

    @property
    def formula(self) -> Formula:
        return FORMULAS[self.kind]

    @cached_property
    def shapes(self) -> str:
        """Return a key that is equal for primitives of one kind with equal shapes and equal plain values."""
        values = sorted(self.fields.items())
        return str([(name, tuple(v.shape) if isinstance(v, torch.Tensor) else v) for name, v in values])

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """Return where its tensors begin in the memory that they are views of, in elements of their own types."""
        tensors = {name: value for name, value in self.fields.items() if isinstance(value, torch.Tensor)}
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        return {name: int(tensor.storage_offset()) for name, tensor in tensors.items()}

    @property
    def source(self) -> str:
        """Return the name of the module whose input it reads; empty for its own."""
        return self.fields.get("source") or ""

    def __call__(self, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        result: torch.Tensor = self.formula.function(x, y, **self.fields)
        return result


def input_scale(x: torch.Tensor, _: None, *, d: torch.Tensor) -> torch.Tensor:
    return x * d


def output_scale(_: torch.Tensor, y: torch.Tensor, *, d: torch.Tensor) -> torch.Tensor:
    return y * d


def bias(_: torch.Tensor, y: torch.Tensor, *, d: torch.Tensor) -> torch.Tensor:
    return d.expand_as(y)


def input_rotation(x: torch.Tensor, _: None, *, blocks: torch.Tensor) -> torch.Tensor:
    blocked = _unflatten(x, (-1, blocks.shape[-1]))
    if blocks.shape[0] == 1:
        return (blocked @ blocks[0].T).flatten(-2)
    turned: torch.Tensor = torch.einsum("nbj,bij->nbi", blocked, blocks)
    return turned.flatten(-2)


def pair_rotation(_: torch.Tensor, y: torch.Tensor, *, d: torch.Tensor, c: torch.Tensor, group: int) -> torch.Tensor:
    u, v = _unflatten(y, (-1, 2, group // 2)).unbind(-2)
    turned = torch.stack((-v, u), dim=-2).flatten(-3)
    return torch.addcmul(y * d, turned, c)


def bottleneck(
    x: torch.Tensor, y: torch.Tensor, *, source: str, activation: str, **weights: torch.Tensor
) -> torch.Tensor:
    return _bottleneck(y + x if source else y, activation, **weights)


def parallel_bottleneck(
    x: torch.Tensor, _: torch.Tensor, *, source: str, activation: str, **weights: torch.Tensor
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
    return F.linear(ACTIVATIONS[activation](F.linear(x, down, down_bias)), up, up_bias)


def sparse(
    x: torch.Tensor, y: torch.Tensor, *, starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Multiply by a sparse matrix in compressed rows, in fp32. torch's CSR product has no atomics on a GPU either."""
    return csr_product((y.shape[-1], x.shape[-1]), starts, columns, values, x.t()).t().to(y.dtype)


def csr_product(
    shape: tuple[int, int], starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """Return the product of a matrix in compressed rows with x: (columns, n), in fp32."""
    matrix = torch.sparse_csr_tensor(starts, columns, values.float(), shape, check_invariants=False)
    if x.device.type == "cpu" and not torch.backends.mkl.is_available():
        matrix = matrix.to_dense()  # torch multiplies by CSR on a CPU through MKL only
    product: torch.Tensor = matrix @ x.float()
    return product


def kronecker(x: torch.Tensor, _: torch.Tensor, *, w1: torch.Tensor, w2: torch.Tensor) -> torch.Tensor:
    rows = _unflatten(x, (w1.shape[1], w2.shape[1]))
    return (w1 @ (rows @ w2.T)).flatten(-2)


def dense(x: torch.Tensor, _: torch.Tensor, *, w: torch.Tensor) -> torch.Tensor:
    return x @ w.T


def low_rank(x: torch.Tensor, _: torch.Tensor, *, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the low-rank term. For reference: what runs is a `BypassBackend`."""
    h = x @ a.T if x.is_floating_point() else a.T[x]
    return h @ b.T


def expert_low_rank(
    x: torch.Tensor, _: torch.Tensor, *, a: torch.Tensor, b: torch.Tensor, parameter: str
) -> torch.Tensor:
    """Return the low-rank terms of each expert's rows. For reference: what runs is `experts/`.

    x: (experts, rows, in).
    """
    return x @ a.mT @ b.mT


def routed_low_rank(
    x: torch.Tensor,
    _: torch.Tensor,
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    prototypes: torch.Tensor,
    top_k: int,
    temperature: float,
) -> torch.Tensor:
    fit = (x @ prototypes.T).abs()
    best, experts = fit.topk(top_k, dim=-1)
    gates = torch.zeros_like(fit).scatter_(-1, experts, (best / temperature).softmax(-1))
    h = _unflatten(x @ a.flatten(0, 1).T, a.shape[:2])
    return (h * gates[..., None]).flatten(-2) @ b.flatten(0, 1)


def shared_low_rank(
    x: torch.Tensor, y: torch.Tensor, *, a: torch.Tensor, b: torch.Tensor, d: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    h = x @ a[:, : x.shape[-1]].T * d
    return h @ b[: y.shape[-1]].T * scale


def rows(x: torch.Tensor, y: torch.Tensor, *, ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if x.is_floating_point():  # a head
        return y.index_copy(-1, ids.long(), x @ values.T)
    places = torch.searchsorted(ids, x.to(ids.dtype)).clamp_(max=ids.numel() - 1)
    return torch.where((ids[places] == x)[..., None], values[places], y)


def replacement(
    x: torch.Tensor, _: torch.Tensor, *, module: Callable[[torch.Tensor], torch.Tensor], width: int = 0
) -> torch.Tensor:
    """Call a module in place of the base's.

    module: the base's with the adapter's parameters, made where the base's modules are known. width: of a head's
    output, read where room is made for it.
    """
    return module(x)


def chain(x: torch.Tensor, y: torch.Tensor, *, ops: Sequence["Op"], width: int) -> torch.Tensor:
    """Apply several replacements of one adapter, each to the output of the one before. width: of the widest."""
    for op in ops:
        y = op(x, y)
    return y


def chained(ops: Sequence[Op]) -> list[Op]:
    """Join all replacements into one primitive, and return it before the others, which stay as they are."""
    replacements = [op for op in ops if op.formula.stage is Stage.REPLACE]
    others = [op for op in ops if op.formula.stage is not Stage.REPLACE]
    if len(replacements) < 2:
        return [*replacements, *others]
    # Whole modules come before rows of them.
    replacements.sort(key=lambda op: op.kind != "replacement")
    width = max(op.fields.get("width") or 0 for op in replacements)
    return [Op("chain", {"ops": replacements, "width": width}), *others]


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _unflatten(tensor: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Split the last dimension into several."""
    return tensor.reshape(*tensor.shape[:-1], *sizes)


ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}

FORMULAS: Mapping[str, Formula] = {
    "input_scale": Formula(Stage.INPUT, input_scale, row="d"),
    "input_rotation": Formula(Stage.INPUT, input_rotation),
    "replacement": Formula(Stage.REPLACE, replacement),
    "rows": Formula(Stage.REPLACE, rows),
    "chain": Formula(Stage.REPLACE, chain),
    "output_scale": Formula(Stage.OUTPUT, output_scale, row="d"),
    "pair_rotation": Formula(Stage.OUTPUT, pair_rotation),
    "bottleneck": Formula(Stage.OUTPUT, bottleneck),
    "parallel_bottleneck": Formula(Stage.ADD, parallel_bottleneck),
    "low_rank": Formula(Stage.ADD, low_rank),
    "routed_low_rank": Formula(Stage.ADD, routed_low_rank),
    "shared_low_rank": Formula(Stage.ADD, shared_low_rank),
    "shared_bases": Formula(Stage.ADD, shared_bases),
    "kronecker": Formula(Stage.ADD, kronecker),
    "spectral": Formula(Stage.ADD, spectral),
    "circulant": Formula(Stage.ADD, circulant),
    "sparse": Formula(Stage.ADD, sparse),
    "dense": Formula(Stage.ADD, dense),
    "bias": Formula(Stage.ADD, bias, row="d"),
    "expert_low_rank": Formula(Stage.INSIDE, expert_low_rank),
}
