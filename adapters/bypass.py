"""What every adapter is compiled to, whatever method trained it.

Knows the closed set of primitives and their formulas; knows nothing of checkpoints, of the arena or of kernels.
To serve a new PEFT method is to write one function that returns a `Bypass` and to add one row to its table.

With several primitives at one site, whatever their order in the list, the module's output is

    y = R(base(x + Σ in(x)));   y += Σ out(y);   y += Σ add(x)

R: Replacement, Rows. in: InputScale, InputRotation. out: OutputScale, PairRotation, Bottleneck, all of the same y. add:
LowRank, Kronecker, Sparse, Dense, Bias, all of the module's own input x, and ParallelBottleneck, of another module's.
ExpertLowRank is inside of base. Each primitive is what it adds to the identity, so a mixture is the weighted sum of
these terms; Bottleneck, which is not affine in y, is in none. What a method multiplies its own delta by (DoRA's
scale of s·B) is folded into the delta at load.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Primitive:
    """kind: its name on cards, and in `kernels/ops.py`, which has its formula. Fields are tensors or plain values.

    shared: names of the tensors that modules and adapters have alike, and that are kept once.
    """

    kind: ClassVar[str]
    shared: ClassVar[frozenset[str]] = frozenset()

    def tensors(self) -> dict[str, torch.Tensor]:
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value for name, value in values if isinstance(value, torch.Tensor)}

    @property
    def num_bytes(self) -> int:
        """Of its own tensors, without those that are shared."""
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
    down: (width, out_features); up: (out_features, width). activation: f, as `kernels/ops.py` names it.
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
    """`y[rows[i]] += values[i] · x[columns[i]]`. rows, columns: (nnz,) int32, sorted by row; values: (nnz,)."""

    kind = "sparse"
    rows: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class Kronecker(Primitive):
    """`y += kron(w1, w2) x`. w1: (a, c); w2: (b, d); a·b = out_features, c·d = in_features."""

    kind = "kronecker"
    w1: torch.Tensor
    w2: torch.Tensor


@dataclass(frozen=True)
class Dense(Primitive):
    """`y += w x`. w: (out_features, in_features). As large as the base's own weight: see `--max-dense-delta`."""

    kind = "dense"
    w: torch.Tensor


@dataclass(frozen=True)
class Rows(Primitive):
    """Rows of an embedding's or a head's weight replaced. ids: (k,) int32 ascending; values: (k, width).

    At an embedding, values already hold what the module multiplies its rows by.
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


@dataclass(frozen=True)
class KVPrefix:
    """Keys and values before the first token, which then is at position `length`.

    layers: layer index to (keys, values), each (length, kv heads, dim), as the cache holds them: positions applied.
    """

    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]

    @property
    def length(self) -> int:
        return next(iter(self.layers.values()))[0].shape[0]

    @property
    def num_bytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers.values())


@dataclass(frozen=True)
class SideAttention:
    """`o += softmax(q keysᵀ · scale) values` in one layer, a softmax of its own beside the attention's.

    keys, values: (length, kv heads, dim), without positions; the gate is folded into values. LLaMA-Adapter (Zhang et
    al. 2023, arXiv:2303.16199). scale: of the scores.
    """

    keys: torch.Tensor
    values: torch.Tensor
    scale: float

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True)
class Bypass:
    """One adapter, compiled against one base.

    method: PEFT's name of the method (`LORA`), or `BOTTLENECK`.
    sites: for each site's name (`model.layers.0.self_attn.q_proj`), its primitives.
    prefix: keys and values before the prompt. side_attention: layer index to what its attention is given beside.
    invocation: token ids from whose last occurrence in the prompt on the adapter works; empty: everywhere.
    exclusive: what two adapters of one mixture must not both be, as in "two DoRA adapters"; `mixing` says why not.
    num_tasks: of a method that has tasks, of which a request names one; 0 for the others.
    """

    method: str
    sites: Mapping[str, tuple[Primitive, ...]]
    prefix: KVPrefix | None = None
    side_attention: Mapping[int, SideAttention] | None = None
    invocation: tuple[int, ...] = ()
    exclusive: tuple[str, ...] = ()
    num_tasks: int = 0

    @property
    def rank(self) -> int:
        """The largest rank over all sites; 0 for an adapter without a low-rank part."""
        low_rank = (sum(p.rank for p in ps if isinstance(p, LowRank)) for ps in self.sites.values())
        experts = (p.rank for ps in self.sites.values() for p in ps if isinstance(p, ExpertLowRank))
        return max((*low_rank, *experts), default=0)

    @property
    def num_bytes(self) -> int:
        sites = sum(primitive.num_bytes for primitives in self.sites.values() for primitive in primitives)
        prefix = 0 if self.prefix is None else self.prefix.num_bytes
        return (
            sites + self._shared_bytes() + prefix + sum(side.num_bytes for side in (self.side_attention or {}).values())
        )

    def _shared_bytes(self) -> int:
        shared = [p.tensors()[name] for ps in self.sites.values() for p in ps for name in p.shared]
        return sum({id(tensor): tensor.nbytes for tensor in shared}.values())


def _rank(primitive: Primitive) -> int:
    if isinstance(primitive, SharedLowRank):
        return primitive.a.shape[0]
    return primitive.rank if isinstance(primitive, LowRank) else 0
