"""Picks the implementation of the bypasses for the arena's device."""

from collections.abc import Sequence

import torch

from .layout import BypassBackend, Group
from .torch_bypass import TorchBypass


def make_bypass_backend(
    arena: torch.Tensor, groups: Sequence[Group], *, max_rows: int, max_slots: int = 256, max_rank: int = 512
) -> BypassBackend:
    """arena: one-dimensional; every adapter's factors lie in it. Slots are 0 to max_slots - 1.

    max_rows: of a step. max_rank: of a site, for which memory is set aside; higher ones are served too.
    """
    if arena.is_cuda:
        from .triton_bypass import TritonBypass  # not on machines without a GPU, which need no triton

        backend = TritonBypass(arena, groups, max_rows=max_rows, max_slots=max_slots, max_rank=max_rank)
        backend.warm_up()
        return backend
    return TorchBypass(arena, groups)
