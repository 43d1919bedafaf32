"""Picks the implementation of the bypasses for the arena's device."""

from collections.abc import Sequence

import torch

from .layout import BypassBackend, Group
from .torch_bypass import TorchBypass


def make_bypass_backend(arena: torch.Tensor, groups: Sequence[Group]) -> BypassBackend:
    """arena: one-dimensional; every adapter's factors lie in it."""
    return TorchBypass(arena, groups)
