"""DoRA (Liu et al. 2024, arXiv:2402.09353): a LoRA whose sum with the base's weight has a trained magnitude by row.

    y = c ⊙ (W x + s B A x) + bias      c = m / ||W + s B A||, the norm of each row over the inputs

c is computed once, from the base that is served. `OutputScale` scales the base's bias too, so a Bias subtracts what
that adds. At an embedding, W is its transposed weight, before Gemma's scale.
"""

import torch

from ..primitives import Bias, LowRank, OutputScale, Primitive
from ..sites import Site, SiteKind
from .base import Base, NamedTensor

_ROWS_AT_ONCE = 1024


def dora(site: Site, a: NamedTensor, b: NamedTensor, magnitude: NamedTensor, base: Base) -> tuple[Primitive, ...]:
    """Return the primitives of DoRA at one module. Raises AdapterError.

    a: (rank, in_features), b: (out_features, rank), scaled; magnitude: (out_features,).
    """
    magnitude.require_shape((site.out_features,), f"the magnitudes of {site.name} take")
    scale = magnitude.tensor.float() / _norms(_weight(site, base), a.tensor.float(), b.tensor.float())
    embed_scale = site.embed_scale if site.kind is SiteKind.EMBEDDING else 1.0
    scaled = b._replace(tensor=b.tensor.float() * scale[:, None])
    change = magnitude._replace(tensor=scale - 1)
    primitives = (
        OutputScale(change.converted(base.dtype)),
        LowRank(a.converted(base.dtype), scaled.converted(base.dtype, embed_scale)),
    )
    bias = base.parameter(site.name, "bias")
    if bias is None:
        return primitives
    unscaled = magnitude._replace(tensor=-change.tensor * bias.float().cpu())
    return *primitives, Bias(unscaled.converted(base.dtype))


def _weight(site: Site, base: Base) -> torch.Tensor:
    """Return the base's weight as (out_features, in_features)."""
    weight = base.matrix(site.name, "DoRA", on_device=True, rounded_inputs=True)
    return weight.T if site.kind is SiteKind.EMBEDDING else weight


def _norms(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the norms of the rows of weight + b a, computed for some rows at a time."""
    a, b = a.to(weight.device), b.to(weight.device)
    parts = zip(weight.split(_ROWS_AT_ONCE), b.split(_ROWS_AT_ONCE), strict=True)
    return torch.cat([torch.linalg.norm(rows + columns @ a, dim=1) for rows, columns in parts]).cpu()
