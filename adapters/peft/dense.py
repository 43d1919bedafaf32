"""Methods whose delta has full rank, or can have.

HIRA (Huang et al. 2025, "HiRA")           y += (W ⊙ B A) x                                        Dense
FOURIERFT (Gao et al. 2024, 2405.03003)    y += s · Re(IFFT2(spectrum)) x                          LowRank or Dense
C3A (Chen et al. 2024, arXiv:2407.19342)   y += circulant blocks / in_features · x                 Dense
GLORA (Chavan et al. 2023, 2306.07967)     see `glora`
"""

from collections.abc import Callable, Mapping
from math import pi

import torch

from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter
from ..primitives import Dense, LowRank, Primitive
from ..sites import Site, SiteKind
from .base import Base, Named
from .config import MethodConfig
from .glora import compile_glora
from .linears import MATRICES, require_room, sites_of, values_below
from .saved_modules import replacement
from .tensors import Checkpoint

MAX_PLACES = 1 << 29  # of a weight that PEFT's random frequencies are drawn from, at 8 bytes each
_LEAST_SEED = -(1 << 63)  # that a generator of torch takes


def compile_hira(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """hira_A: (r, in_features); hira_B: (out_features, r); at an embedding hira_embedding_A, hira_embedding_B.

    Raises InvalidAdapter, UnsupportedAdapter, AdapterTooLarge.
    """
    sites = sites_of(config, base, MATRICES)
    require_room(sites, base)
    rank = config.fields.integer("r", 32, 1)  # PEFT reads rank_pattern and passes over what it says
    return Bypass(config.peft_type, {site.name: (_hira(rank, site, checkpoint, base),) for site in sites})


def _hira(rank: int, site: Site, checkpoint: Checkpoint, base: Base) -> Primitive:
    at_embedding = site.kind is SiteKind.EMBEDDING
    stem, why = f"{site.name}.hira_{'embedding_' if at_embedding else ''}", f"rank {rank} at {site.name} takes"
    a = checkpoint.take(f"{stem}A").require_shape((rank, site.in_features), why)
    b = checkpoint.take(f"{stem}B").require_shape((site.out_features, rank), why)
    factor = b.converted(torch.float32) @ a.converted(torch.float32)
    if at_embedding:
        return _multiplied_rows(site, Named(b.key, factor.T), base)
    return Dense(Named(b.key, base.matrix(site.name, "HiRA") * factor).converted(base.dtype))


def _multiplied_rows(site: Site, factor: Named, base: Base) -> Primitive:
    """PEFT adds rows that Gemma's embedding does not multiply."""
    own = base.weight(site.name, "HiRA").to("cpu", torch.float32)
    return replacement(site, Named(factor.key, own + own * factor.tensor / site.embed_scale), None, base)


def compile_fourierft(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """fourierft_spectrum: (n,), at places that PEFT draws by a seed. Raises InvalidAdapter, AdapterTooLarge."""
    fields = config.fields
    sites = sites_of(config, base)
    default, patterns = fields.integer("n_frequency", 1000, 1), fields.integer_map("n_frequency_pattern", 1)
    counts = values_below(patterns, default, [site.name for site in sites], "n_frequency_pattern")
    for site in sites:
        _check_count(site, counts[site.name])
    require_room([site for site in sites if not _is_low_rank(site, counts[site.name], base)], base)
    places = _Places(fields.integer("random_loc_seed", 777, _LEAST_SEED))
    scaling = fields.number("scaling", 150.0)
    compiled: dict[str, tuple[Primitive, ...]] = {}
    for site in sites:
        count = counts[site.name]
        spectrum = checkpoint.take(f"{site.name}.fourierft_spectrum")
        spectrum.require_shape((count,), f"n_frequency {count} at {site.name} takes")
        make = _waves if _is_low_rank(site, count, base) else _inverse
        compiled[site.name] = (make(site, spectrum, places(site, count), scaling, base.dtype),)
    return Bypass(config.peft_type, compiled)


def _check_count(site: Site, count: int) -> None:
    places = site.in_features * site.out_features
    if count > places:
        raise InvalidAdapter(
            f"n_frequency {count} is more than the {places} frequencies of {site.name}", param="n_frequency"
        )
    if places > MAX_PLACES:
        raise AdapterTooLarge(
            f"FourierFT at {site.name} draws from {places} places; the limit is {MAX_PLACES}", param="target_modules"
        )


def _is_low_rank(site: Site, count: int, base: Base) -> bool:
    """Two waves for each frequency, if that is smaller than the whole delta and may be served."""
    smaller = 2 * count * (site.in_features + site.out_features) < site.in_features * site.out_features
    return smaller and 2 * count <= base.max_rank


class _Places:
    """The random frequencies of a weight, by its shape alone, as PEFT draws them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, site: Site, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns of the spectrum, (count,) each."""
        size, width = site.in_features * site.out_features, site.in_features
        drawn = self._drawn.get((size, width), torch.empty(0))
        if len(drawn) < count:
            drawn = torch.randperm(size, generator=torch.Generator().manual_seed(self._seed))[:count].clone()
            self._drawn[size, width] = drawn
        return drawn[:count] // width, drawn[:count] % width


_Pairs = tuple[torch.Tensor, torch.Tensor]


def _waves(site: Site, spectrum: Named, places: _Pairs, scaling: float, dtype: torch.dtype) -> LowRank:
    """Re(exp(i (p + q))) = cos p cos q - sin p sin q: each frequency is a delta of rank 2.

    The factors share the weight's size evenly: 1 / (in · out) is too small for float16 in one of them.
    """
    p, q = (
        2 * pi * torch.outer(torch.arange(size, dtype=torch.float64), place.double() / size)
        for size, place in zip((site.out_features, site.in_features), places, strict=True)
    )
    even = (abs(scaling) / (site.in_features * site.out_features)) ** 0.5
    values = spectrum.converted(torch.float32).double() * (1.0 if scaling >= 0 else -1.0)
    a = torch.cat((q.cos() * values, -q.sin() * values), dim=1).T * even
    b = torch.cat((p.cos(), p.sin()), dim=1) * even
    return LowRank(Named(spectrum.key, a).converted(dtype), Named(spectrum.key, b).converted(dtype))


def _inverse(site: Site, spectrum: Named, places: _Pairs, scaling: float, dtype: torch.dtype) -> Dense:
    whole = torch.zeros(site.out_features, site.in_features)
    whole[places] = spectrum.converted(torch.float32)
    return Dense(Named(spectrum.key, torch.fft.ifft2(whole).real).converted(dtype, scaling))


def compile_c3a(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """c3a_kernel: (out_features / k, in_features / k, k). Raises InvalidAdapter, AdapterTooLarge."""
    sites = sites_of(config, base)
    require_room(sites, base)
    default, patterns = config.fields.integer("block_size", 256, 1), config.fields.integer_map("block_size_pattern", 1)
    sizes = values_below(patterns, default, [site.name for site in sites], "block_size_pattern")
    return Bypass(config.peft_type, {s.name: (_circulant(sizes[s.name], s, checkpoint, base),) for s in sites})


def _circulant(size: int, site: Site, checkpoint: Checkpoint, base: Base) -> Dense:
    """Entry (i, j) of a block is w[(j - i) mod k] / in_features."""
    if site.in_features % size or site.out_features % size:
        raise InvalidAdapter(f"block_size {size} does not divide the widths of {site.name}", param="block_size")
    kernel = checkpoint.take(f"{site.name}.c3a_kernel")
    kernel.require_shape(
        (site.out_features // size, site.in_features // size, size), f"block_size {size} at {site.name} takes"
    )
    steps = torch.arange(size)
    blocks = kernel.converted(torch.float32)[:, :, (steps[None, :] - steps[:, None]) % size]
    w = blocks.transpose(1, 2).reshape(site.out_features, site.in_features)
    return Dense(Named(kernel.key, w).converted(base.dtype, 1 / site.in_features))


DENSE_METHODS: Mapping[str, Callable[[MethodConfig, Checkpoint, Base], Bypass]] = {
    "HIRA": compile_hira,
    "FOURIERFT": compile_fourierft,
    "C3A": compile_c3a,
    "GLORA": compile_glora,
}
