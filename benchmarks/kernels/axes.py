"""The steps that the kernel benchmark times, and their number of layers."""

from collections.abc import Sequence

import torch

from .problem import Scenario, Shape
from .roofline import least_work, shares_of

MIXED = (8, 16, 32, 64)
Axes = tuple[Sequence[int], Sequence[int], Sequence[tuple[int, ...]]]  # tokens, adapters, ranks in turn

AXES: dict[str, dict[str, Axes]] = {
    "cuda": {
        "decode": ((1, 4, 16, 64, 256), (1, 4, 16, 64), ((8,), (16,), (64,), MIXED)),
        "prefill": ((512, 4096, 8192), (1, 8), ((16,), MIXED)),
    },
    "cpu": {
        "decode": ((1, 16, 64), (1, 8, 32), ((16,), MIXED)),
        "prefill": ((512, 2048), (1, 8), ((16,), MIXED)),
    },
}
QUICK: dict[str, dict[str, Axes]] = {
    "cuda": {"decode": ((16, 64), (16,), (MIXED,)), "prefill": ((4096,), (8,), (MIXED,))},
    "cpu": {"decode": ((16,), (8,), (MIXED,)), "prefill": ((512,), (8,), (MIXED,))},
}
TABLE: dict[str, Sequence[tuple[int, int, tuple[int, ...]]]] = {  # tokens, adapters, ranks in turn
    "decode": (
        *((1, 1, (16,)), (16, 1, (16,)), (16, 16, (16,)), (16, 16, MIXED), (64, 1, (16,)), (64, 16, (16,))),
        *((64, 16, MIXED), (64, 64, (16,)), (64, 64, MIXED), (256, 1, (16,)), (256, 16, (16,)), (256, 16, MIXED)),
        *((256, 64, (16,)), (256, 64, MIXED)),
    ),
    "prefill": ((512, 8, (16,)), (4096, 1, (16,)), (4096, 8, (16,)), (8192, 1, (16,)), (8192, 8, (16,))),
}
"""The steps of docs/kernels.md, at which peers have been measured on two cards."""
CACHE_BYTES = 32 << 20  # of a CPU: what one core has of a last-level cache that many share
MOST_LAYERS = 96


def scenarios(device: str, phases: Sequence[str], *, quick: bool) -> list[Scenario]:
    """Return the steps of a device, without those of more adapters than tokens or of one adapter with several ranks."""
    axes = (QUICK if quick else AXES)[device]
    return [
        Scenario(phase, tokens, tuple(ranks[i % len(ranks)] for i in range(adapters)))
        for phase in phases
        for tokens in axes[phase][0]
        for adapters in axes[phase][1]
        for ranks in axes[phase][2]
        if adapters <= tokens and (adapters > 1 or len(ranks) == 1)
    ]


def table(phases: Sequence[str]) -> list[Scenario]:
    """Return the steps of the table in docs/kernels.md."""
    return [
        Scenario(phase, tokens, tuple(ranks[i % len(ranks)] for i in range(adapters)))
        for phase in phases
        for tokens, adapters, ranks in TABLE[phase]
    ]


def label(ranks: Sequence[int]) -> str:
    """Return the ranks as a text: one rank, or the least and the largest."""
    return str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)}-{max(ranks)}"


def layers_for(scenario: Scenario, shape: Shape, dtype: torch.dtype, device: str) -> int:
    """Return how many layers' factors fill the cache twice, so that each layer's come from memory, as a model's do."""
    per_layer = least_work(shape.layer, shares_of(scenario), dtype).factors
    needed = -(-2 * _cache_bytes(device) // per_layer)
    return min(needed, MOST_LAYERS if device == "cuda" else shape.layers)


def _cache_bytes(device: str) -> int:
    return int(torch.cuda.get_device_properties(0).L2_cache_size) if device == "cuda" else CACHE_BYTES
