"""Chooses the implementation of the terms of experts for a device."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import torch

from ..site_plan import OpSegment
from .combinations import all_combinations
from .routing import Routing
from .torch_backend import TorchExpertTerms

Key = TypeVar("Key")


class ExpertTerms(Protocol):
    """The terms that the adapters of a step add at one module."""

    def route(self, experts: torch.Tensor, num_experts: int) -> Routing:
        """Sort the pairs of the step. experts: (tokens, k), the experts of each token."""

    def add_(self, parameter: str, x: torch.Tensor, y: torch.Tensor, routing: Routing) -> None:
        """Add to y the terms of the parameter's product with x. Both are in the order of the step's `routing`."""


def expert_terms(
    segments: Mapping[Key, Sequence[OpSegment]], rows: int, device: torch.device
) -> Mapping[Key, ExpertTerms]:
    """Make the terms of each module. segments: of each module. rows: of the step."""
    work = all_combinations(segments, rows)
    if device.type == "cuda":
        from .triton_backend import triton_terms  # not on machines without a GPU, which need no triton

        return triton_terms(work, device)
    return {key: TorchExpertTerms(combinations) for key, combinations in work.items()}


def warm_up(parameters: Sequence[tuple[str, int, int, int]], dtype: torch.dtype, device: torch.device) -> None:
    """Compile the kernels that steps may launch. parameters: name, experts, in_features and out_features of each."""
    if device.type == "cuda":
        from .triton_backend import warm_up

        warm_up(parameters, dtype, device)
