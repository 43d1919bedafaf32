"""BOFT (Liu et al. 2023, arXiv:2311.06243): y = s ⊙ (W (R' x)) + b, R a product of butterflies.

Served as an InputRotation, an OutputScale, and a Bias that keeps s off b. PEFT multiplies rows by R, so that a column x
sees its transpose R'.
"""

import torch

from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter
from ..primitives import Bias, InputRotation, OutputScale, Primitive
from ..sites import Site
from .base import Base, NamedTensor
from .config import MethodConfig
from .linears import own_bias, sites_of
from .rotation import cayley, less_identity
from .tensors import Checkpoint


def compile_boft(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a BOFT adapter.

    Reads boft_R: (passes, blocks, k, k); boft_s: (out_features, 1). Raises InvalidAdapter, AdapterTooLarge.
    """
    fields = config.fields
    block_size, count = fields.integer("boft_block_size", 4, 0), fields.integer("boft_block_num", 0, 0)
    if (block_size == 0) == (count == 0):
        raise InvalidAdapter(
            f"one of boft_block_size ({block_size}) and boft_block_num ({count}) must be 0", param="boft_block_size"
        )
    passes = fields.integer("boft_n_butterfly_factor", 1, 1)
    sites = {}
    for site in sites_of(config, base):
        size = block_size or site.in_features // count
        rotation = _butterfly(site, size, passes, checkpoint, base)
        sites[site.name] = (rotation, *_scaled(site, checkpoint, base))
    return Bypass(config.peft_type, sites)


def _butterfly(site: Site, size: int, passes: int, checkpoint: Checkpoint, base: Base) -> InputRotation:
    """Return all passes as one rotation. Raises InvalidAdapter.

    PEFT without its CUDA extension trains and saves one pass, whatever the configuration says.
    """
    named = checkpoint.take(f"{site.name}.boft_R")
    shape = tuple(named.tensor.shape)
    passes = 1 if shape[:1] == (1,) else passes
    _check_butterfly(site, size, passes, base)
    named.require_shape((passes, site.in_features // size, size, size), f"blocks of size {size} at {site.name} take")
    raw = named.converted(torch.float32)
    turns = cayley(0.5 * (raw - raw.mT))
    whole = torch.eye(size << (passes - 1))
    for index, blocks in enumerate(turns):
        whole = _one_pass(blocks, index, len(whole if whole.dim() == 2 else whole[0])) @ whole
    return InputRotation(less_identity(named.key, whole, base.dtype))


def _check_butterfly(site: Site, size: int, passes: int, base: Base) -> None:
    why = f"{passes} passes over blocks of size {size} do not fit the {site.in_features} inputs of {site.name}"
    if size == 0 or passes > site.in_features.bit_length() or site.in_features % (size << (passes - 1)):
        raise InvalidAdapter(why, param="boft_block_size")
    if size < 2 or (passes > 1 and size % 2):
        raise InvalidAdapter(f"BOFT does not work with blocks of size {size} at {site.name}", param="boft_block_size")
    wanted = site.in_features * (size << (passes - 1)) * base.dtype.itemsize
    if passes > 1 and wanted > base.max_dense_delta:
        raise AdapterTooLarge(
            f"the rotation at {site.name} takes {wanted} bytes; the server's --max-dense-delta is "
            f"{base.max_dense_delta}",
            param="boft_n_butterfly_factor",
        )


def _one_pass(blocks: torch.Tensor, index: int, width: int) -> torch.Tensor:
    """Return P B P' of one pass, (segments, width, width), in segments as wide as all passes reach. blocks: (n, k, k).

    P gathers, in every run of k · 2^index features, the even half blocks before the odd ones.
    """
    size = blocks.shape[-1]
    segments = blocks.unflatten(0, (-1, width // size))
    diagonal = blocks.new_zeros(len(segments), width // size, size, width // size, size)
    places = torch.arange(width // size)
    diagonal[:, places, :, places, :] = segments.transpose(0, 1)
    order = torch.arange(width)
    if size > 1 and index > 0:
        order = order.reshape(-1, 1 << index, 2, size // 2).transpose(1, 2).flatten()
    matrix = diagonal.reshape(len(segments), width, width)
    return matrix[:, order][:, :, order]


def _scaled(site: Site, checkpoint: Checkpoint, base: Base) -> tuple[Primitive, ...]:
    """Return the output scale. It leaves the base's bias alone, which `OutputScale` does not: a Bias corrects that."""
    named = checkpoint.take(f"{site.name}.boft_s").require_shape((site.out_features, 1), f"{site.name} takes")
    scale = NamedTensor(named.key, named.converted(torch.float32).flatten() - 1).converted(base.dtype)
    if not scale.count_nonzero():
        return ()
    bias = own_bias(site, base)
    if bias is None:
        return (OutputScale(scale),)
    return OutputScale(scale), Bias(NamedTensor(named.key, -scale.float() * bias).converted(base.dtype))
