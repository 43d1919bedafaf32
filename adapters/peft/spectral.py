"""Methods whose delta has few parameters between Fourier transforms: frequencies (FourierFT), circulant blocks (C3A).

FOURIERFT (Gao et al. 2024, arXiv:2405.03003)  y += s · Re(IFFT2(spectrum)) x             Spectral or LowRank
C3A (Chen et al. 2024, arXiv:2407.19342)       y += circulant blocks / in_features · x    Circulant
"""

from math import pi
from typing import NamedTuple

import torch

from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter
from ..primitives import Circulant, LowRank, Primitive, Spectral
from ..sites import Site
from .base import Base, NamedTensor
from .config import MethodConfig
from .draws import first_of_permutation
from .linears import sites_of, values_below
from .tensors import Checkpoint

MAX_PLACES = 1 << 29  # positions in a weight, from which PEFT draws frequencies
_LEAST_SEED = -(1 << 63)  # the least that a generator of torch takes
_FEW = 16  # most frequencies that are served as low rank, where twice as many is a small rank


class _Frequencies(NamedTuple):
    """The positions of a spectrum's entries, in the order of their rows; one object for all modules of a shape.

    Of a real delta, row u of a spectrum and row out - u say the same: the entries are those of the upper half, to which
    the others are mirrored. order: (n,), which of the checkpoint's entries comes where. rows, columns: (n,).
    conjugates: (n,) int32, -columns: where a transform with the sign - has what one with + has in columns.
    starts: (out // 2 + 2,) int32, of the upper half's rows among the entries. halves: (n,), 1/2 where a row and its
    mirror are two, and 1 where they are one.
    """

    order: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    conjugates: torch.Tensor
    starts: torch.Tensor
    halves: torch.Tensor


def compile_fourierft(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a FOURIERFT adapter. Raises InvalidAdapter, AdapterTooLarge.

    Reads fourierft_spectrum: (n,), at positions that PEFT draws by a seed.
    """
    fields = config.fields
    sites = sites_of(config, base)
    default, patterns = fields.integer("n_frequency", 1000, 1), fields.integer_map("n_frequency_pattern", 1)
    counts = values_below(patterns, default, [site.name for site in sites], "n_frequency_pattern", base.deadline)
    for site in sites:
        _check_count(site, counts[site.name])
    drawn = _Drawn(fields.integer("random_loc_seed", 777, _LEAST_SEED))
    scaling = fields.number("scaling", 150.0)
    compiled: dict[str, tuple[Primitive, ...]] = {}
    for site in sites:
        count = counts[site.name]
        spectrum = checkpoint.take(f"{site.name}.fourierft_spectrum")
        spectrum.require_shape((count,), f"n_frequency {count} at {site.name} takes")
        make = _waves if _is_low_rank(site, count, base) else _spectral
        compiled[site.name] = (make(site, spectrum, drawn(site, count), scaling, base.dtype),)
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
    """Return whether to serve two waves for each frequency as low rank.

    That is if they are few, smaller than the whole delta, and within the server's limit.
    """
    smaller = 2 * count * (site.in_features + site.out_features) < site.in_features * site.out_features
    return smaller and count <= _FEW and 2 * count <= base.max_rank


class _Drawn:
    """The random frequencies of a weight, by its shape alone, as PEFT draws them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._made: dict[tuple[int, int, int], _Frequencies] = {}

    def __call__(self, site: Site, count: int) -> _Frequencies:
        key = (site.out_features, site.in_features, count)
        if key not in self._made:
            places = first_of_permutation(site.out_features * site.in_features, count, self._seed)
            self._made[key] = _mirrored(places // site.in_features, places % site.in_features, site)
        return self._made[key]


def _mirrored(rows: torch.Tensor, columns: torch.Tensor, site: Site) -> _Frequencies:
    """Mirror positions to the upper half: entry (u, v) of a real delta's spectrum is the conjugate of (-u, -v)."""
    mirrored = 2 * rows > site.out_features
    rows = torch.where(mirrored, site.out_features - rows, rows)
    columns = torch.where(mirrored, -columns % site.in_features, columns)
    order = rows.argsort(stable=True)
    rows, columns = rows[order], columns[order]
    starts = torch.searchsorted(rows, torch.arange(site.out_features // 2 + 2), out_int32=True)
    alone = (rows == 0) | (2 * rows == site.out_features)
    conjugates = (-columns % site.in_features).int()
    return _Frequencies(order, rows, columns, conjugates, starts, torch.where(alone, 1.0, 0.5))


def _spectral(site: Site, spectrum: NamedTensor, found: _Frequencies, scaling: float, dtype: torch.dtype) -> Spectral:
    values = NamedTensor(spectrum.key, spectrum.weights()[found.order] * found.halves).converted(dtype)
    scale = scaling / (site.in_features * site.out_features)
    return Spectral(found.starts, found.conjugates, values, scale, site.out_features)


def _waves(site: Site, spectrum: NamedTensor, found: _Frequencies, scaling: float, dtype: torch.dtype) -> LowRank:
    """Return the frequencies as low-rank factors.

    Re(exp(i (p + q))) = cos p cos q - sin p sin q: each frequency is a delta of rank 2. The factors share the weight's
    size evenly: 1 / (in · out) is too small for float16 in one of them.
    """
    p, q = (
        2 * pi * torch.outer(torch.arange(size, dtype=torch.float64), place.double() / size)
        for size, place in ((site.out_features, found.rows), (site.in_features, found.columns))
    )
    even = (abs(scaling) / (site.in_features * site.out_features)) ** 0.5
    values = spectrum.weights()[found.order].double() * (1.0 if scaling >= 0 else -1.0)
    a = torch.cat((q.cos() * values, -q.sin() * values), dim=1).T * even
    b = torch.cat((p.cos(), p.sin()), dim=1) * even
    return LowRank(NamedTensor(spectrum.key, a).converted(dtype), NamedTensor(spectrum.key, b).converted(dtype))


def compile_c3a(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a C3A adapter. Reads c3a_kernel: (out_features / k, in_features / k, k). Raises InvalidAdapter."""
    sites = sites_of(config, base)
    default, patterns = config.fields.integer("block_size", 256, 1), config.fields.integer_map("block_size_pattern", 1)
    sizes = values_below(patterns, default, [site.name for site in sites], "block_size_pattern", base.deadline)
    return Bypass(config.peft_type, {s.name: (_circulant(sizes[s.name], s, checkpoint, base),) for s in sites})


def _circulant(size: int, site: Site, checkpoint: Checkpoint, base: Base) -> Circulant:
    """Return the blocks of one module: entry (i, j) of a block is w[(j - i) mod k] / in_features."""
    if site.in_features % size or site.out_features % size:
        raise InvalidAdapter(f"block_size {size} does not divide the widths of {site.name}", param="block_size")
    kernel = checkpoint.take(f"{site.name}.c3a_kernel")
    kernel.require_shape(
        (site.out_features // size, site.in_features // size, size), f"block_size {size} at {site.name} takes"
    )
    return Circulant(kernel.converted(base.dtype), 1 / site.in_features)
