"""The closed set of what an adapter can do at one module of the base, and in which order it does it.

With several primitives at one site, whatever their order in the list, the module's output is

    y = R(base(x + Σ in(x)));   y += Σ out(y);   y += Σ add(x)

R: Replacement, TokenRows. in: InputScale, InputRotation. out: OutputScale, PairRotation, Bottleneck, all of the same y.
add: LowRank, RoutedLowRank, SharedLowRank, SharedBases, Kronecker, Spectral, Circulant, Sparse, Dense, Bias, all of the
module's own input x, and ParallelBottleneck, of another module's. ExpertLowRank is inside of base. Each primitive is
what it adds to the identity, so a mixture is the weighted sum of these terms, unless one of them reads what another
left (`kernels/ops/side.py` then adds the adapter whole); Bottleneck, which is not affine in y, is in none. What a
method multiplies its own delta by (DoRA's scale of s·B) is folded into the delta at load. Knows no kernels.
"""

from dataclasses import dataclass, fields
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Primitive:
    """One term of an adapter at one module. Fields are tensors or plain values.

    kind: its name on cards and in `kernels/ops/formulas.py`, which has its formula.
    shared: names of the tensors that modules and adapters have in common, and that are kept once.
    """

    kind: ClassVar[str]
    shared: ClassVar[frozenset[str]] = frozenset()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the fields that are tensors, by name."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in values if isinstance(value, torch.Tensor)}

    @property
    def num_bytes(self) -> int:
        """Return the bytes of its own tensors, without those that are shared."""
        return sum(tensor.nbytes for name, tensor in self.tensors().items() if name not in self.shared)


@dataclass(frozen=True)
class LowRank(Primitive):
    """`y += b (a x)`: the low-rank bypass of LoRA (Hu et al. 2021, arXiv:2106.09685), every scaling folded into `b`.

    a: (rank, in_features). At an embedding, in_features is the vocabulary, and column `a[:, id]` belongs to token id.
    b: (out_features, rank).
    """

    kind = "low_rank"
    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class ExpertLowRank(Primitive):
    """`y += b[e] (a[e] x)` in the product of expert e with one of its parameters, inside a mixture of experts.

    a: (experts, rank, in_features). b: (experts, out_features, rank), every scaling folded in. parameter: its name.
    """

    kind = "expert_low_rank"
    a: torch.Tensor
    b: torch.Tensor
    parameter: str

    @property
    def rank(self) -> int:
        return self.a.shape[1]


@dataclass(frozen=True)
class RoutedLowRank(Primitive):
    """`y += Σ_e g_e b[e]ᵀ (a[e] x)`, g = softmax(top_k of |prototypes x| / temperature) and 0 for the other experts.

    a: (experts, rank, in_features). b: (experts, rank, out_features), every scaling folded in.
    prototypes: (experts, in_features). Arrow (Ostapenko et al. 2024, arXiv:2405.11157).
    """

    kind = "routed_low_rank"
    a: torch.Tensor
    b: torch.Tensor
    prototypes: torch.Tensor
    top_k: int
    temperature: float

    @property
    def rank(self) -> int:
        return self.a.shape[1]


@dataclass(frozen=True)
class SharedLowRank(Primitive):
    """`y += scale ⊙ (b[:out] (d ⊙ (a[:, :in] x)))`: a low-rank bypass whose factors many modules share (VeRA).

    a: (rank, at least in_features); b: (at least out_features, rank), the same tensors at all modules.
    d: (rank,); scale: (out_features,).
    """

    kind = "shared_low_rank"
    shared = frozenset({"a", "b"})
    a: torch.Tensor
    b: torch.Tensor
    d: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class SharedBases(Primitive):
    """`y += b h`, `h[k, n] = d[k, n] · Σ_j a[k, j] scale[n, j] x[j]`, of full rank: bases that many modules share.

    With fewer outputs than inputs the other way round, `y[j] += Σ_kn a[k, j] scale[n, j] d[k, n] h[k, n]`, `h = bᵀ x`.
    RandLoRA (Albert et al. 2025, arXiv:2502.00987). narrow, wide: the smaller and the larger width of the module.
    a: (rank, at least narrow); b: (at least wide, at least rank · bases), of which a module takes the beginnings: the
    same tensors at all modules. d: (rank, bases), the scaling folded in; scale: (bases, narrow). out_features: its own.
    """

    kind = "shared_bases"
    shared = frozenset({"a", "b"})
    a: torch.Tensor
    b: torch.Tensor
    d: torch.Tensor
    scale: torch.Tensor
    out_features: int


@dataclass(frozen=True)
class InputScale(Primitive):
    """`x += d ⊙ x` before the module. d: (in_features,), the scale less 1."""

    kind = "input_scale"
    d: torch.Tensor


@dataclass(frozen=True)
class OutputScale(Primitive):
    """`y += d ⊙ y`, the base's bias included. d: (out_features,), the scale less 1."""

    kind = "output_scale"
    d: torch.Tensor


@dataclass(frozen=True)
class Bias(Primitive):
    """`y += d`. d: (out_features,)."""

    kind = "bias"
    d: torch.Tensor


@dataclass(frozen=True)
class InputRotation(Primitive):
    """`x += blockdiag(blocks) x` before the module.

    blocks: (in_features / k, k, k), the rotation less the identity; (1, k, k) if all blocks are the same one.
    """

    kind = "input_rotation"
    blocks: torch.Tensor


@dataclass(frozen=True)
class PairRotation(Primitive):
    """`y += d ⊙ y + c ⊙ rot(y)`, where rot makes (-v, u) of the halves (u, v) of every group of `group` features.

    d, c: (out_features,). RoAD (Liao et al. 2024, arXiv:2409.00119).
    """

    kind = "pair_rotation"
    d: torch.Tensor
    c: torch.Tensor
    group: int


@dataclass(frozen=True)
class Bottleneck(Primitive):
    """`y += up f(down (y + r) + down_bias) + up_bias`: a network after the module.

    Houlsby et al. 2019, arXiv:1902.00751, have no r; Pfeiffer et al. 2021, arXiv:2005.00247, read the residual stream.
    source: name of the module whose input is r; r is 0 where it is empty.
    down: (width, out_features); up: (out_features, width). activation: f, as `kernels/ops/formulas.py` names it.
    """

    kind = "bottleneck"
    down: torch.Tensor
    down_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    activation: str
    source: str = ""


@dataclass(frozen=True)
class ParallelBottleneck(Primitive):
    """`y += up f(down r + down_bias) + up_bias`: a network beside the module (He et al. 2022, arXiv:2110.04366).

    source: name of the module whose input is r. down: (width, width of r); up: (out_features, width).
    """

    kind = "parallel_bottleneck"
    down: torch.Tensor
    down_bias: torch.Tensor
    up: torch.Tensor
    up_bias: torch.Tensor
    activation: str
    source: str


@dataclass(frozen=True)
class Sparse(Primitive):
    """`y[i] += values[j] · x[columns[j]]` for j from starts[i] to starts[i + 1]: single entries of a weight, by row.

    starts: (out_features + 1,) int32, from 0 to nnz. columns: (nnz,) int32; values: (nnz,).
    """

    kind = "sparse"
    starts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    @staticmethod
    def row_starts(rows: torch.Tensor, out_features: int) -> torch.Tensor:
        """Return `starts` for entries in these rows, which are in ascending order."""
        ends = torch.arange(out_features + 1, dtype=rows.dtype, device=rows.device)
        return torch.searchsorted(rows, ends, out_int32=True)


@dataclass(frozen=True)
class Kronecker(Primitive):
    """`y += kron(w1, w2) x`. w1: (a, c); w2: (b, d); a·b = out_features, c·d = in_features."""

    kind = "kronecker"
    w1: torch.Tensor
    w2: torch.Tensor


@dataclass(frozen=True)
class Spectral(Primitive):
    """`y += scale · F(h)`, `h[u] = Σ values[k] · X[columns[k]]` over k in [starts[u], starts[u + 1]): few frequencies.

    X[v] = Σ_q x[q] exp(-2πi v q / in_features). F(h)[p] is Re h[0] + Σ_u 2 Re(h[u] exp(2πi u p / out_features)) over
    0 < u < out_features / 2, and (-1)^p Re h[out_features / 2] where that is a whole number.
    FourierFT (Gao et al. 2024, arXiv:2405.03003). values, columns: (n,), in the order of u; columns int32.
    starts: (out_features // 2 + 2,) int32. Where the frequencies are is the same for all modules of a shape.
    """

    kind = "spectral"
    shared = frozenset({"starts", "columns"})
    starts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    scale: float
    out_features: int


@dataclass(frozen=True)
class Circulant(Primitive):
    """`y[o, t] += scale · Σ_n Σ_j kernel[o, n, (j - t) mod size] x[n, j]`: a matrix of circulant blocks.

    kernel: (out_features / size, in_features / size, size). C3A (Chen et al. 2024, arXiv:2407.19342).
    """

    kind = "circulant"
    kernel: torch.Tensor
    scale: float


@dataclass(frozen=True)
class Dense(Primitive):
    """`y += w x`. w: (out_features, in_features). As large as the base's own weight: see `--max-dense-delta`."""

    kind = "dense"
    w: torch.Tensor


@dataclass(frozen=True)
class TokenRows(Primitive):
    """Rows of an embedding's or a head's weight replaced. ids: (k,) int32 ascending; values: (k, width).

    At an embedding, values are already multiplied by what the module multiplies its rows by.
    """

    kind = "rows"
    ids: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class Replacement(Primitive):
    """The module with other parameters. weight, bias: of the shapes that the module stores; None keeps the base's.

    At an embedding or a head, weight may have more rows than the base's: a larger vocabulary.
    """

    kind = "replacement"
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
