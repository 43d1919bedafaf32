"""Methods whose modules share their large tensors: VeRA's projections, VB-LoRA's bank of vectors."""

import math

import torch

from ..bypass import Bypass
from ..errors import AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from ..primitives import SharedLowRank
from ..sites import Site
from .base import Base, NamedTensor
from .config import MethodConfig
from .factored import low_rank
from .linears import sites_of
from .tensors import Checkpoint

_MAX_RANK = 1 << 16


def compile_vera(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a VERA adapter: y += diag(λb) B diag(λd) A x, A and B the beginnings of two shared random matrices.

    Kopiczko et al. 2024, arXiv:2310.11454. Raises AdapterError.
    """
    return _vera("vera", 1, config, checkpoint, base)


def compile_pvera(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a PVERA adapter: a VeRA whose A has a first half for the mean and a second for a variance.

    Inference uses the mean alone. Raises AdapterError.
    """
    if config.fields.boolean("sample_at_inference"):
        raise UnsupportedAdapter(
            "sample_at_inference is not supported yet: answers would be random; set it to false",
            param="sample_at_inference",
        )
    return _vera("pvera", 2, config, checkpoint, base)


def _vera(stem: str, halves: int, config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    rank = config.fields.integer("r", 256, 1)
    sites = sites_of(config, base)
    width = max(site.in_features for site in sites), max(site.out_features for site in sites)
    shapes = (halves * rank, width[0]), (width[1], rank)
    if rank > base.max_rank:
        raise AdapterTooLarge(f"rank {rank} is over the server's limit of {base.max_rank}", param="r")
    projections = zip("AB", _projections(stem, shapes, config, checkpoint), strict=True)
    shared_a, shared_b = (
        NamedTensor(f"{stem}_{letter}", w[:rank] if letter == "A" else w).converted(base.dtype)
        for letter, w in projections
    )
    compiled = {}
    for site in sites:
        why = f"rank {rank} at {site.name} takes"
        d = checkpoint.take(f"{site.name}.{stem}_lambda_d").require_shape((halves * rank,), why).weights()
        b = checkpoint.take(f"{site.name}.{stem}_lambda_b").require_shape((site.out_features,), why).weights()
        scales = NamedTensor(site.name, d[:rank]).converted(base.dtype), NamedTensor(site.name, b).converted(base.dtype)
        compiled[site.name] = (SharedLowRank(shared_a, shared_b, *scales),)
    return Bypass(config.peft_type, compiled)


def _projections(
    stem: str, shapes: tuple[tuple[int, int], tuple[int, int]], config: MethodConfig, checkpoint: Checkpoint
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shared A and B: the checkpoint's, or drawn again as PEFT draws them on the CPU."""
    if config.fields.boolean("save_projection", default=True):
        a, b = (
            checkpoint.take(f"{stem}_{letter}").require_shape(shape, "the largest targeted modules take").weights()
            for letter, shape in zip("AB", shapes, strict=True)
        )
        return a, b
    key = config.fields.integer("projection_prng_key", 0, 0)
    if key >= 1 << 63 or max(map(max, shapes)) > _MAX_RANK * 64:
        raise InvalidAdapter("projection_prng_key or r is too large", param="projection_prng_key")
    generator = torch.Generator().manual_seed(key)
    a, b = (_drawn(shape, generator) for shape in shapes)
    return a, b


def _drawn(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Draw from Kaiming's uniform distribution (He et al. 2015, arXiv:1502.01852) with the gain of a ReLU."""
    bound = math.sqrt(3.0) * math.sqrt(2.0) / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def compile_vblora(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a VBLORA adapter: a LoRA whose factors consist of vectors, each a mix of the top k of one bank.

    Li et al. 2024, arXiv:2405.15179. Raises AdapterError.
    """
    fields = config.fields
    rank, count, length = (
        fields.integer("r", 4, 1),
        fields.integer("num_vectors", 256, 1),
        fields.integer("vector_length", 256, 1),
    )
    bank = checkpoint.take("vblora_vector_bank").require_shape((count, length), "num_vectors and vector_length make it")
    sites = {}
    for site in sites_of(config, base):
        if site.in_features % length or site.out_features % length:
            raise InvalidAdapter(f"{site.name} does not divide into vectors of {length}", param="vector_length")
        a = _mixed(site, "A", (rank, site.in_features // length), bank.weights(), config, checkpoint)
        b = _mixed(site, "B", (site.out_features // length, rank), bank.weights(), config, checkpoint)
        sites[site.name] = (low_rank(site.name, a.flatten(1), b.transpose(1, 2).flatten(0, 1), base),)
    return Bypass(config.peft_type, sites)


def _mixed(
    site: Site, letter: str, shape: tuple[int, int], bank: torch.Tensor, config: MethodConfig, checkpoint: Checkpoint
) -> torch.Tensor:
    """Return the vectors of one factor, (*shape, vector_length). Raises InvalidAdapter."""
    stem, top = f"{site.name}.vblora_logits_{letter}", config.fields.integer("topk", 2, 1)
    if top > len(bank):
        raise InvalidAdapter(f"topk is {top}, and num_vectors only {len(bank)}", param="topk")
    if config.fields.boolean("save_only_topk_weights"):
        found = checkpoint.take(f"{stem}_topk_indices").require_shape(
            (*shape, top), f"{top} vectors at {site.name} take"
        )
        if found.tensor.is_floating_point() or found.tensor.dtype == torch.bool:
            raise InvalidAdapter(f"{found.key} holds no integers, which the places of vectors are", param="files")
        indices = found.tensor.long()
        if indices.min() < 0 or indices.max() >= len(bank):
            raise InvalidAdapter(f"{found.key} points past the {len(bank)} vectors of the bank", param="files")
        first = checkpoint.take(f"{stem}_topk_weights").require_shape((*shape, top - 1), "all but one weight are saved")
        weights = torch.cat([first.weights(), 1 - first.weights().sum(-1, keepdim=True)], dim=-1)
    else:
        logits = checkpoint.take(stem).require_shape((*shape, len(bank)), f"{len(bank)} vectors at {site.name} take")
        best, indices = logits.weights().topk(top, dim=-1)
        weights = best.softmax(-1)
    return (weights[..., None] * bank[indices]).sum(-2)
