"""RandLoRA: y += s · Σ_n B_n diag(d_n) A diag(scale_n) x, of full rank. Albert et al. 2025, arXiv:2502.00987.

A and all B_n are random, and the same for all modules: each uses their first rows and columns, as many as its widths
take. The numbers of A are paired with those of the B_n as PEFT flattens them, rank before bases in A and bases before
rank in B.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter
from ..primitives import SharedBases
from ..sites import Site
from .base import Base, NamedTensor
from .config import MethodConfig
from .linears import sites_of
from .tensors import Checkpoint


class _Shape(NamedTuple):
    """The shapes of the shared A, (rank, 1, narrow), and B, (wide, bases, rank), for the widest of the modules."""

    rank: int
    narrow: int
    wide: int

    @property
    def bases(self) -> int:
        return -(-self.narrow // self.rank)

    @property
    def a(self) -> tuple[int, ...]:
        return self.rank, 1, self.narrow

    @property
    def b(self) -> tuple[int, ...]:
        return self.wide, self.bases, self.rank


def compile_randlora(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a RANDLORA adapter.

    Reads randlora_lambda: (r, bases); randlora_gamma: (bases, narrow), bases = ceil(narrow / r). Raises AdapterError.
    """
    sites = sites_of(config, base)
    rank = config.fields.integer("r", 32, 1)
    if rank > base.max_rank:
        raise AdapterTooLarge(f"rank {rank} is over the server's limit of {base.max_rank}", param="r")
    widths = max(site.in_features for site in sites), max(site.out_features for site in sites)
    shape = _Shape(rank, min(widths), max(widths))
    _require_room(shape, base)
    a, b = _bases(shape, sites, config, checkpoint)
    shared = (
        NamedTensor("randlora_A", a.flatten(1)).converted(base.dtype),
        NamedTensor("randlora_B", b.flatten(1)).converted(base.dtype),
    )
    scaling = config.fields.number("randlora_alpha", 640) / rank
    return Bypass(
        config.peft_type, {s.name: (_scaled_bases(s, rank, scaling, shared, checkpoint, base),) for s in sites}
    )


def _require_room(shape: _Shape, base: Base) -> None:
    """Check that the random bases are within the limit, before they are drawn. Raises AdapterTooLarge."""
    wanted = (math.prod(shape.a) + math.prod(shape.b)) * base.dtype.itemsize
    if wanted > base.max_dense_delta:
        raise AdapterTooLarge(
            f"its random bases would take {wanted} bytes, as a weight of their own; the server's --max-dense-delta is "
            f"{base.max_dense_delta}",
            param="files",
        )


def _scaled_bases(
    site: Site,
    rank: int,
    scaling: float,
    shared: tuple[torch.Tensor, torch.Tensor],
    checkpoint: Checkpoint,
    base: Base,
) -> SharedBases:
    narrow, why = min(site.in_features, site.out_features), f"rank {rank} at {site.name} takes"
    count = -(-narrow // rank)
    d = checkpoint.take(f"{site.name}.randlora_lambda").require_shape((rank, count), why)
    scale = checkpoint.take(f"{site.name}.randlora_gamma").require_shape((count, narrow), why)
    return SharedBases(*shared, d.converted(base.dtype, scaling), scale.converted(base.dtype), site.out_features)


def _bases(
    shape: _Shape, sites: list[Site], config: MethodConfig, checkpoint: Checkpoint
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shared A and B: the checkpoint's, or drawn again as PEFT draws them on the CPU."""
    if config.fields.boolean("save_projection", default=True):
        return _saved("A", shape.a, sites, checkpoint), _saved("B", shape.b, sites, checkpoint)
    generator = torch.Generator().manual_seed(config.fields.integer("projection_prng_key", 0, 0))
    if config.fields.boolean("very_sparse"):
        draw = _signs(math.sqrt(min(shape.narrow, shape.wide)))
    elif config.fields.boolean("sparse"):
        draw = _signs(3)
    else:
        draw = _uniform
    a, b = draw(shape, generator)
    return a / a.std(), b / b.std()


def _saved(letter: str, shape: tuple[int, ...], sites: list[Site], checkpoint: Checkpoint) -> torch.Tensor:
    """Take a saved base. Raises InvalidAdapter if two copies differ.

    PEFT saves it once by itself, and again with every module; one copy is enough.
    """
    names = [f"randlora_{letter}", *(f"{site.name}.randlora_{letter}" for site in sites)]
    found = [checkpoint.take(name) for name in names if name in checkpoint] or [checkpoint.take(names[0])]
    first = found[0].require_shape(shape, "the largest targeted modules take").weights()
    for other in found[1:]:
        if not torch.equal(other.tensor.to(first.dtype), first):
            raise InvalidAdapter(f"{other.key} is not what the other tensors say", param="files")
    return first


def _uniform(shape: _Shape, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from Kaiming's uniform distribution (He et al. 2015, arXiv:1502.01852), in the type that PEFT draws in."""

    def draw(fan_in: int, *size: int) -> torch.Tensor:
        bound = 1 / math.sqrt(fan_in)
        return torch.empty(size, dtype=torch.bfloat16).uniform_(-bound, bound, generator=generator)

    a = draw(shape.narrow, *shape.a)
    return a, torch.cat([draw(shape.rank, shape.wide, 1, shape.rank) for _ in range(shape.bases)], dim=1)


_Draw = Callable[[_Shape, torch.Generator], tuple[torch.Tensor, torch.Tensor]]


def _signs(sparsity: float) -> _Draw:
    """Return a draw of -1, 0 and 1, of which one in `sparsity` is not 0.

    Achlioptas 2003, "Database-friendly random projections".
    """

    def draw(shape: _Shape, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (torch.rand(size, generator=generator) for size in (shape.a, shape.b))
        edge = 1 / (2 * sparsity)
        return (a > 1 - edge).float() - (a < edge).float(), (b > 1 - edge).float() - (b < edge).float()

    return draw
