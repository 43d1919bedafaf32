"""Methods that rotate the input of a module, or its output.

    OFT (Qiu et al. 2023, arXiv:2306.07280)      y = W (R' x) + b, R block-diagonal          InputRotation
    BOFT (Liu et al. 2023, arXiv:2311.06243)     see `boft`
    ROAD (Liao et al. 2024, arXiv:2409.00119)    y = c1 ⊙ (W x + b) + c2 ⊙ rot(W x + b)      PairRotation

PEFT multiplies rows by R, so that a column x sees its transpose R'. At an embedding, OFT rotates the rows themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..bypass import Bypass
from ..errors import InvalidAdapter, UnsupportedAdapter
from ..primitives import InputRotation, PairRotation, Primitive
from ..sites import Site, SiteKind
from .base import Base, NamedTensor
from .config import MethodConfig
from .fields import Fields
from .linears import MATRICES, sites_of
from .saved_modules import replacement
from .tensors import Checkpoint

MAX_TERMS = 64  # most terms of the Neumann series; the last ones vanish long before


def compile_oft(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile an OFT adapter.

    Reads oft_R.weight: (blocks, k (k - 1) / 2), the upper triangles of skew-symmetric matrices. Raises InvalidAdapter.
    """
    oft = _read_oft(config.fields)
    sites = sites_of(config, base, MATRICES)
    return Bypass(config.peft_type, {site.name: (_oft(oft, site, checkpoint, base),) for site in sites})


@dataclass(frozen=True)
class _Oft:
    """The settings of an OFT adapter.

    r: number of blocks, or 0; block_size: or 0. terms: of the Neumann series; 0 for an exact Cayley transform.
    eps: most that the blocks may differ from the identity; None for no limit.
    """

    r: int
    block_size: int
    shared: bool
    terms: int
    eps: float | None

    def size_of_block(self, width: int) -> int:
        """Return the size of a block: as PEFT, the nearest divisor of the width, the lower of two."""
        return _nearest_divisor(width, self.block_size) if self.block_size else width // _nearest_divisor(width, self.r)


def _read_oft(fields: Fields) -> _Oft:
    if fields.value("oft_block_size") is None:
        raise UnsupportedAdapter(
            "oft_block_size is missing: PEFT before 0.14 wrote it, in a form that no later one loads; train it again",
            param="oft_block_size",
        )
    r, block_size = fields.integer("r", 0, 0), fields.integer("oft_block_size", 32, 0)
    if (r == 0) == (block_size == 0):
        raise InvalidAdapter(f"one of r ({r}) and oft_block_size ({block_size}) must be 0", param="oft_block_size")
    terms = fields.integer("num_cayley_neumann_terms", 5, 2)
    if terms > MAX_TERMS:
        raise InvalidAdapter(
            f"num_cayley_neumann_terms is {terms}; at most {MAX_TERMS} are of use", param="num_cayley_neumann_terms"
        )
    exact = not fields.boolean("use_cayley_neumann", True)
    eps = fields.number("eps", 6e-5) if fields.boolean("coft") else None
    if eps is not None and eps <= 0:
        raise InvalidAdapter(f"eps must be over 0, not {eps}", param="eps")
    return _Oft(r, block_size, fields.boolean("block_share"), 0 if exact else terms, eps)


def _nearest_divisor(width: int, wanted: int) -> int:
    if wanted >= width:
        return width
    higher = next(size for size in range(wanted, width + 1) if width % size == 0)
    lower = next(size for size in range(wanted, 0, -1) if width % size == 0)
    return lower if wanted - lower <= higher - wanted else higher


def _oft(oft: _Oft, site: Site, checkpoint: Checkpoint, base: Base) -> Primitive:
    at_embedding = site.kind is SiteKind.EMBEDDING
    width = site.out_features if at_embedding else site.in_features
    size = oft.size_of_block(width)
    if size < 2:
        raise InvalidAdapter(f"blocks of size 1 rotate nothing at {site.name}", param="oft_block_size")
    count = 1 if oft.shared else width // size
    named = checkpoint.take(f"{site.name}.{'oft_embedding_R' if at_embedding else 'oft_R'}.weight")
    named.require_shape((count, size * (size - 1) // 2), f"blocks of size {size} at {site.name} take")
    rotation = _rotation(oft, _skew(named.converted(torch.float32), size))
    if at_embedding:
        return _rotated_rows(site, named, rotation, base)
    return InputRotation(less_identity(named.key, rotation, base.dtype))


def _skew(triangle: torch.Tensor, size: int) -> torch.Tensor:
    """Return skew-symmetric matrices, (blocks, size, size).

    triangle: (blocks, size (size - 1) / 2), the numbers above the diagonal, row by row.
    """
    rows, columns = torch.triu_indices(size, size, 1)
    upper = triangle.new_zeros(len(triangle), size, size)
    upper[:, rows, columns] = triangle
    return upper - upper.mT


def _rotation(oft: _Oft, skew: torch.Tensor) -> torch.Tensor:
    if oft.eps is not None:
        limit = oft.eps / len(skew) ** 0.5
        skew = skew * (limit / skew.norm(dim=(1, 2), keepdim=True).clamp(min=limit))
    return _neumann(skew, oft.terms) if oft.terms else cayley(skew)


def cayley(skew: torch.Tensor) -> torch.Tensor:
    """Return (I - Q)(I + Q)⁻¹, which exists for every skew-symmetric Q."""
    identity = torch.eye(skew.shape[-1])
    turned: torch.Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
    return turned


def _neumann(skew: torch.Tensor, terms: int) -> torch.Tensor:
    """Return I + 2Q + 2Q² + ... as PEFT cuts the series off: the last power counts once, and 3 terms are 4."""
    result = torch.eye(skew.shape[-1]) + 2 * skew
    if terms == 2:
        return result
    power = skew @ skew
    result = result + 2 * power
    for _ in range(3, terms - 1):
        power = power @ skew
        result = result + 2 * power
    return result + power @ skew


def less_identity(key: str, rotation: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a rotation of rows, (blocks, k, k), into `InputRotation`'s of columns, less the identity."""
    return NamedTensor(key, rotation.mT - torch.eye(rotation.shape[-1])).converted(dtype)


def _rotated_rows(site: Site, named: NamedTensor, rotation: torch.Tensor, base: Base) -> Primitive:
    parts = base.weight(site.name, "OFT").to("cpu", torch.float32).unflatten(-1, (-1, rotation.shape[-1]))
    rows = torch.einsum("vnj,njk->vnk", parts, rotation.expand(parts.shape[1], -1, -1)).flatten(1)
    return replacement(site, NamedTensor(named.key, rows), None, base)


def compile_road(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a ROAD adapter.

    Reads road_theta, road_alpha: (out_features / 2,), or as many, or twice as many as outputs, by variant.
    Raises InvalidAdapter.
    """
    variant = config.fields.choice("variant", "road_1", tuple(_ROAD))
    group = config.fields.integer("group_size", 64, 2)
    if group % 2:
        raise InvalidAdapter(f"group_size must be even, not {group}", param="group_size")
    sites = {site.name: (_road(variant, group, site, checkpoint, base),) for site in sites_of(config, base)}
    return Bypass(config.peft_type, sites)


def _road(variant: str, group: int, site: Site, checkpoint: Checkpoint, base: Base) -> PairRotation:
    if site.out_features % group:
        raise InvalidAdapter(
            f"group_size {group} does not divide the {site.out_features} outputs of {site.name}", param="group_size"
        )
    shape = (site.out_features * _PER_PAIR[variant] // 2,)
    theta, alpha = (
        checkpoint.take(f"{site.name}.{suffix}").require_shape(shape, f"{variant} at {site.name} takes")
        for suffix in ("road_theta", "road_alpha")
    )
    first, second = _ROAD[variant](theta.converted(torch.float32), alpha.converted(torch.float32), group)
    d, c = (NamedTensor(alpha.key, column).converted(base.dtype) for column in (first - 1, second))
    return PairRotation(d, c, group)


_Columns = tuple[torch.Tensor, torch.Tensor]


def _road_1(theta: torch.Tensor, alpha: torch.Tensor, group: int) -> _Columns:
    """Return the columns where both halves of a group share their angles."""
    theta, alpha = (half.reshape(-1, 1, group // 2).expand(-1, 2, -1).flatten() for half in (theta, alpha))
    return _road_2(theta, alpha, group)


def _road_2(theta: torch.Tensor, alpha: torch.Tensor, group: int) -> _Columns:
    return alpha * theta.cos(), alpha * theta.sin()


def _road_4(theta: torch.Tensor, alpha: torch.Tensor, group: int) -> _Columns:
    """Return the columns where each group has the angles of the first column before those of the second."""
    theta, alpha = theta.reshape(-1, 2, group), alpha.reshape(-1, 2, group)
    return (alpha[:, 0] * theta[:, 0].cos()).flatten(), (alpha[:, 1] * theta[:, 1].sin()).flatten()


_ROAD: Mapping[str, Callable[[torch.Tensor, torch.Tensor, int], _Columns]] = {
    "road_1": _road_1,
    "road_2": _road_2,
    "road_4": _road_4,
}
_PER_PAIR: Mapping[str, int] = {"road_1": 1, "road_2": 2, "road_4": 4}
