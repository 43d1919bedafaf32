"""Methods whose delta is another product of matrices: element by element (LoHa), or of Kronecker (LoKr)."""

import torch

from ..bypass import Bypass
from ..errors import InvalidAdapter
from ..primitives import Dense, Kronecker, Primitive
from ..sites import Site
from .base import Base, NamedTensor
from .config import MethodConfig
from .factored import low_rank, ranks_of
from .linears import require_room, sites_of
from .targets import values_at
from .tensors import Checkpoint


def compile_loha(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a LOHA adapter: y += s · ((A1 B1) ⊙ (A2 B2)) x, s = alpha / r.

    The product of two matrices of rank r has rank r² at most, with factors that are products of rows.
    Hyeon-Woo et al. 2022, arXiv:2108.06098. Raises AdapterError.
    """
    sites = sites_of(config, base)
    ranks, scaling = ranks_of(config, sites, 8, base.deadline), _scaling(config, sites, base)
    dense = [site for site in sites if _is_smaller_dense(site, ranks[site.name])]
    require_room(dense, base)
    return Bypass(
        config.peft_type,
        {s.name: (_loha(s, ranks[s.name], scaling[s.name], s in dense, checkpoint, base),) for s in sites},
    )


def _is_smaller_dense(site: Site, rank: int) -> bool:
    return rank**2 * (site.in_features + site.out_features) > site.in_features * site.out_features


def _loha(site: Site, rank: int, scaling: float, dense: bool, checkpoint: Checkpoint, base: Base) -> Primitive:
    why = f"rank {rank} at {site.name} takes"
    left, right = [], []
    for i in (1, 2):
        stem = f"{site.name}.hada_w{i}"
        left.append(checkpoint.take(f"{stem}_a").require_shape((site.out_features, rank), why).weights())
        right.append(checkpoint.take(f"{stem}_b").require_shape((rank, site.in_features), why).weights())
    if dense:
        w = scaling * (left[0] @ right[0]) * (left[1] @ right[1])
        return Dense(NamedTensor(site.name, w).converted(base.dtype))
    a = (right[0][:, None] * right[1][None]).flatten(0, 1)
    b = (left[0][:, :, None] * left[1][:, None]).flatten(1)
    return low_rank(site.name, a, scaling * b, base)


def compile_lokr(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a LOKR adapter: y += s · kron(W1, W2) x, s = alpha / r; each of the two may be a product itself.

    Served as a Kronecker product, or as a low-rank one where that is smaller: its rank is that of W1 times that of W2.
    Yeh et al. 2024, arXiv:2309.14859. Raises AdapterError.
    """
    sites = sites_of(config, base)
    ranks, scaling = ranks_of(config, sites, 8, base.deadline), _scaling(config, sites, base)
    config.fields.boolean("decompose_both")
    return Bypass(
        config.peft_type, {s.name: (_lokr(s, ranks[s.name], scaling[s.name], checkpoint, base),) for s in sites}
    )


def _lokr(site: Site, rank: int, scaling: float, checkpoint: Checkpoint, base: Base) -> Primitive:
    w1, w2 = (_factor(f"{site.name}.lokr_w{i}", rank, checkpoint) for i in (1, 2))
    shape = (len(w1[0]) * len(w2[0]), w1[1].shape[1] * w2[1].shape[1])
    if shape != (site.out_features, site.in_features):
        raise InvalidAdapter(
            f"the factors at {site.name} make {shape}; this base takes {(site.out_features, site.in_features)}",
            param="files",
        )
    thin = w1[0].shape[1] * w2[0].shape[1]
    whole = sum(len(left) * right.shape[1] for left, right in (w1, w2))
    if thin <= base.max_rank and thin * sum(shape) < whole:
        return low_rank(site.name, torch.kron(w1[1], w2[1]), scaling * torch.kron(w1[0], w2[0]), base)
    return Kronecker(
        NamedTensor(f"{site.name}.lokr_w1", w1[0] @ w1[1]).converted(base.dtype, scaling),
        NamedTensor(f"{site.name}.lokr_w2", w2[0] @ w2[1]).converted(base.dtype),
    )


def _factor(name: str, rank: int, checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a factor as a product, (out, k) by (k, in): not multiplied before their shapes are known to be the base's.

    A factor that the checkpoint has whole is returned with the identity, on its smaller side.
    """
    if name in checkpoint:
        whole = _matrix(checkpoint.take(name)).weights()
        if whole.shape[0] < whole.shape[1]:
            return torch.eye(whole.shape[0]), whole
        return whole, torch.eye(whole.shape[1])
    a, b = _matrix(checkpoint.take(f"{name}_a")), _matrix(checkpoint.take(f"{name}_b"))
    a.require_shape((a.tensor.shape[0], rank), f"rank {rank} takes")
    b.require_shape((rank, b.tensor.shape[1]), f"rank {rank} takes")
    return a.weights(), b.weights()


def _matrix(found: NamedTensor) -> NamedTensor:
    if found.tensor.dim() != 2:
        raise InvalidAdapter(
            f"{found.key} has the shape {tuple(found.tensor.shape)}; a matrix is wanted", param="files"
        )
    return found


def _scaling(config: MethodConfig, sites: list[Site], base: Base) -> dict[str, float]:
    names = [site.name for site in sites]
    patterns, alpha = config.fields.number_map("alpha_pattern"), config.fields.number("alpha", 8)
    alphas = values_at(patterns, alpha, names, "alpha_pattern", base.deadline)
    ranks = ranks_of(config, sites, 8, base.deadline)
    return {name: alphas[name] / ranks[name] for name in names}
