"""Chooses the implementation of the bypasses for the arena's device."""

from collections.abc import Sequence

import torch

from ..device.step_memory import StepMemory
from .layout import BypassBackend, Group
from .torch.backend import TorchBypass


def make_bypass_backend(
    arena: torch.Tensor,
    groups: Sequence[Group],
    *,
    max_rows: int,
    max_entries: int | None = None,
    max_slots: int = 256,
    max_rank: int = 512,
    memory: StepMemory | None = None,
) -> BypassBackend:
    """Make the backend of an arena, with all its kernels compiled. Slots are 0 to max_slots - 1.

    arena: one-dimensional, holds the factors of every adapter. max_rows: of a step. max_entries: rows of all segments
    of a step together. max_rank: of a site, for which memory is set aside; higher ones are served too. memory: in which
    a GPU is sent the metadata of each step, by the caller; without one `begin` sends it.
    """
    if arena.is_cuda:
        from .triton.backend import TritonBypass  # not on machines without a GPU, which need no triton

        backend = TritonBypass(
            arena,
            groups,
            max_rows=max_rows,
            max_entries=max_entries,
            max_slots=max_slots,
            max_rank=max_rank,
            memory=memory,
        )
        backend.warm_up()
        return backend
    return TorchBypass(arena, groups)
