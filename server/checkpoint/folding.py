"""A module's weight and bias with weighted adapters in them: W' and b' of y = W' x + b'.

The same terms in the same order as `kernels/ops/site_plan.py` adds them to a module's output, on the matrix instead:

    y = R(base(x + Σ in(x)));   y += Σ out(y);   y += Σ add(x)

Each stage reads what the one before left, and an adapter whose stages are no sum is added whole. Knows no checkpoint.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F

from peftserve.adapters.primitives import Bias, ExpertLowRank, InputRotation, Primitive, Replacement, TokenRows
from peftserve.adapters.sites import Site, SiteKind
from peftserve.kernels.ops.formulas import FORMULAS, Stage
from peftserve.kernels.ops.side import is_sum

from .deltas import ADDED_KINDS, add_delta, in_float32

_INPUTS = frozenset({"input_scale", "input_rotation"})
_REPLACING = frozenset({"replacement", "rows"})
_OUTPUTS = frozenset({"output_scale", "pair_rotation"})
FOLDABLE = ADDED_KINDS | _INPUTS | _REPLACING | _OUTPUTS | {"bias", "expert_low_rank"}
"""Kinds of primitives that are part of a weight or a bias: all that are affine in the module's input."""
_READ = frozenset({Stage.INPUT, Stage.REPLACE, Stage.OUTPUT})


class Share(NamedTuple):
    """What one adapter of the mixture has at one module."""

    weight: float
    primitives: tuple[Primitive, ...]

    @property
    def stages(self) -> frozenset[Stage]:
        return frozenset(FORMULAS[primitive.kind].stage for primitive in self.primitives)


@dataclass(frozen=True)
class Affine:
    """y = weight x + bias. weight: (out_features, in_features) float32; bias: (out_features,), or None for zeros."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def copy(self) -> "Affine":
        return Affine(self.weight.clone(), None if self.bias is None else self.bias.clone())

    def padded(self, site: Site, size: int) -> "Affine":
        """Return it with zeros for the tokens of a larger vocabulary."""
        more = size - _vocabulary(site, self.weight)
        if more <= 0:
            return self
        if site.kind is SiteKind.EMBEDDING:
            return Affine(F.pad(self.weight, (0, more)), self.bias)
        return Affine(F.pad(self.weight, (0, 0, 0, more)), None if self.bias is None else F.pad(self.bias, (0, more)))

    def plus(self, other: "Affine", scale: float) -> "Affine":
        """Return it with `scale` times another map added, in place where there is room."""
        bias = self.bias
        if other.bias is not None:
            bias = other.bias * scale if bias is None else bias.add_(other.bias, alpha=scale)
        return Affine(self.weight.add_(other.weight, alpha=scale), bias)


def fold(site: Site, base: Affine, shares: Sequence[Share]) -> Affine:
    """Return the map of a linear or an embedding with adapters in it. base: may be changed in place.

    An embedding's weight is given and returned as (width, vocabulary), and may have become larger.
    """
    apart = _apart(shares)
    own = base.copy() if apart else base
    folded = _staged(site, own, [share for index, share in enumerate(shares) if index not in apart])
    for index in sorted(apart):
        whole = _staged(site, base.copy(), [shares[index]._replace(weight=1.0)])
        size = max(_vocabulary(site, whole.weight), _vocabulary(site, folded.weight))
        difference = whole.padded(site, size).plus(base.padded(site, size), -1.0)
        folded = folded.padded(site, size).plus(difference, shares[index].weight)
    return folded


def fold_experts(stored: torch.Tensor, transposed: bool, primitive: ExpertLowRank, weight: float) -> None:
    """Add an adapter to the stacked weights of experts in place. stored: (experts, out, in), or (experts, in, out)."""
    for own, a, b in zip(stored, primitive.a, primitive.b, strict=True):
        (own.T if transposed else own).addmm_(b.float(), a.float(), alpha=weight)


def fold_norm(base: torch.Tensor, brought: Sequence[tuple[float, torch.Tensor | None]]) -> torch.Tensor:
    """Return a norm's parameter with others mixed in. The output is affine in it, whatever the norm adds to it."""
    changes = [weight * (other.float() - base) for weight, other in brought if other is not None]
    return base + torch.stack(changes).sum(0) if changes else base


def _apart(shares: Sequence[Share]) -> set[int]:
    """Return the places of the adapters that are added whole, as `kernels/ops/side.py` chooses them."""
    reading = [(index, share) for index, share in enumerate(shares) if _READ & share.stages]
    found = {index for index, share in reading if share.weight != 1 and not is_sum(share.stages)}
    for (one, a), (two, b) in combinations(reading, 2):
        if not is_sum(a.stages | b.stages):
            found |= {one, two}
    return found


def _staged(site: Site, own: Affine, shares: Sequence[Share]) -> Affine:
    base_size = _vocabulary(site, own.weight)
    own = _with_inputs(own, shares)
    own = _with_replacements(site, own, shares)
    sized = [(share, _size(share, base_size)) for share in shares]
    return _with_terms(site, _with_outputs(own, sized), sized)


def _of(share: Share, kinds: Collection[str]) -> list[Primitive]:
    return [primitive for primitive in share.primitives if primitive.kind in kinds]


def _vocabulary(site: Site, weight: torch.Tensor) -> int:
    return weight.shape[1] if site.kind is SiteKind.EMBEDDING else weight.shape[0]


def _size(share: Share, base_size: int) -> int:
    """Return how many outputs an adapter knows: its own vocabulary, or the base's."""
    brought = [p.weight for p in share.primitives if isinstance(p, Replacement) and p.weight is not None]
    return max([base_size, *(len(weight) for weight in brought)])


def _with_inputs(own: Affine, shares: Sequence[Share]) -> Affine:
    """x + Σ in(x): rows of the weight times what maps x to in(x), which are formulas of rows again."""
    terms = [(share.weight, primitive) for share in shares for primitive in _of(share, _INPUTS)]
    if not terms:
        return own
    changed = own.weight.clone()
    for weight, primitive in terms:
        changed.add_(FORMULAS[primitive.kind].function(own.weight, None, **_transposed(primitive)), alpha=weight)
    return replace(own, weight=changed)


def _transposed(primitive: Primitive) -> dict[str, torch.Tensor]:
    """Return the fields of the transposed map: w (D x) = (Dᵀ w) x."""
    fields = in_float32(primitive)
    return {"blocks": fields["blocks"].mT} if isinstance(primitive, InputRotation) else fields


def _with_replacements(site: Site, own: Affine, shares: Sequence[Share]) -> Affine:
    """y += Σ w (R(y) - y), of the y that was before."""
    replacing = [(share.weight, ops) for share in shares if (ops := _of(share, _REPLACING))]
    if not replacing:
        return own
    others = []
    for weight, ops in replacing:
        other = own.copy()
        for op in sorted(ops, key=lambda op: op.kind != "replacement"):
            other = _replaced(site, other, op)
        others.append((weight, other))
    size = max(_vocabulary(site, other.weight) for _, other in others)
    before = own.padded(site, size)
    if len(others) == 1 and others[0][0] == 1:
        return others[0][1].padded(site, size)
    after = before.copy()
    for weight, other in others:
        known = _known(site, before, _vocabulary(site, other.weight))
        after = after.plus(other.plus(known, -1.0).padded(site, size), weight)
    return after


def _known(site: Site, own: Affine, size: int) -> Affine:
    """Return the part of a map that is of the first tokens of the vocabulary."""
    if site.kind is SiteKind.EMBEDDING:
        return Affine(own.weight[:, :size], own.bias)
    return Affine(own.weight[:size], None if own.bias is None else own.bias[:size])


def _replaced(site: Site, own: Affine, op: Primitive) -> Affine:
    if isinstance(op, Replacement):
        weight = own.weight if op.weight is None else oriented(site, op.weight.float()).clone()
        return Affine(weight, own.bias if op.bias is None else op.bias.float().clone())
    assert isinstance(op, TokenRows)
    ids, values = op.ids.long(), op.values.float()
    if site.kind is SiteKind.EMBEDDING:
        return replace(own, weight=own.weight.index_copy(1, ids, values.T / site.embed_scale))
    bias = None if own.bias is None else own.bias.index_fill(0, ids, 0.0)
    return Affine(own.weight.index_copy(0, ids, values), bias)


def oriented(site: Site, stored: torch.Tensor) -> torch.Tensor:
    """Return a weight as it is stored as (out_features, in_features), and the other way round."""
    return stored.T if site.transposed or site.kind is SiteKind.EMBEDDING else stored


def _with_outputs(own: Affine, shares: Sequence[tuple[Share, int]]) -> Affine:
    """y += Σ out(y): the formula of rows, for the columns of the weight and for the bias, both as y has them."""
    terms = [(s.weight, p, _outputs(p, size)) for s, size in shares for p in _of(s, _OUTPUTS)]
    if not terms:
        return own
    rows, bias = own.weight.clone(), None if own.bias is None else own.bias.clone()
    for weight, primitive, size in terms:
        function, fields = FORMULAS[primitive.kind].function, in_float32(primitive)
        rows[:size].add_(function(None, own.weight[:size].T, **fields).T, alpha=weight)
        if bias is not None and own.bias is not None:
            bias[:size].add_(function(None, own.bias[None, :size], **fields)[0], alpha=weight)
    return Affine(rows, bias)


def _outputs(primitive: Primitive, known: int) -> int:
    """Return how many outputs a primitive reads and changes: its row's length, or all that its adapter knows."""
    row = FORMULAS[primitive.kind].row
    return known if row is None else len(getattr(primitive, row))


def _with_terms(site: Site, own: Affine, shares: Sequence[tuple[Share, int]]) -> Affine:
    """y += Σ add(x). An embedding multiplies its rows by its scale, and what is added to its output is not."""
    bias = own.bias
    for share, size in shares:
        scale, known = share.weight / site.embed_scale, _known(site, own, size).weight
        for primitive in _of(share, ADDED_KINDS):
            add_delta(known, primitive, scale)
        for primitive in share.primitives:
            if isinstance(primitive, Bias) and site.kind is SiteKind.EMBEDDING:
                known.add_(primitive.d.float()[:, None], alpha=scale)
            elif isinstance(primitive, Bias):
                bias = own.weight.new_zeros(len(own.weight)) if bias is None else bias
                bias[: len(primitive.d)].add_(primitive.d.float(), alpha=share.weight)
    return Affine(own.weight, bias)
